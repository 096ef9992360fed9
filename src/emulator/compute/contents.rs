//! The contents of a compute's database from its first start on.

use crate::emulator::proxy::scram::Verifier;
use crate::model::secret::Secret;

/// The database, its owner, and the owner's password.
#[derive(Clone, Debug)]
pub(in crate::emulator) struct Contents {
    pub(in crate::emulator) database: String,
    pub(in crate::emulator) role: String,
    pub(in crate::emulator) password: Secret,
    pub(in crate::emulator) verifier: Verifier,
}

impl Contents {
    /// Returns the verifier for a client that logs in as `role`. No password fits it if the role does not exist.
    pub(in crate::emulator) fn verifier(&self, role: &str) -> Verifier {
        if role == self.role {
            self.verifier.clone()
        } else {
            Verifier::mock()
        }
    }

    /// Returns whether `password` is that of `role`.
    pub(in crate::emulator) fn takes(&self, role: &str, password: &Secret) -> bool {
        role == self.role && *password == self.password
    }

    /// Returns a copy with another password.
    pub(in crate::emulator) fn with_password(&self, password: Secret) -> Self {
        let verifier = Verifier::of(&password);
        Self {
            password,
            verifier,
            ..self.clone()
        }
    }

    /// Returns the statement that sets the role's password.
    pub(in crate::emulator) fn password_statement(&self) -> String {
        let name = quoted(&self.role, '"');
        // The verifier, not the password itself: drivers log the statements that they run.
        let verifier = quoted(self.verifier.expose(), '\'');
        format!("ALTER ROLE {name} PASSWORD {verifier}")
    }

    /// Returns the statements that turn a copy of the template into these contents: they set the role's password, and
    /// create what the template does not have.
    pub(in crate::emulator) fn statements(&self) -> Vec<String> {
        let Self { database, role, .. } = self;
        let name = quoted(role, '"');
        let mut sql = vec![self.password_statement()];
        if role != "neondb_owner" {
            let create = format!("CREATE ROLE {name} LOGIN CREATEDB CREATEROLE BYPASSRLS");
            sql.insert(0, create);
        }
        if role != "neondb_owner" && database == "neondb" {
            sql.push(format!("ALTER DATABASE neondb OWNER TO {name}"));
        }
        if database != "neondb" {
            let database = quoted(database, '"');
            sql.push(format!("CREATE DATABASE {database} OWNER {name}"));
        }
        sql
    }
}

fn quoted(text: &str, quote: char) -> String {
    format!(
        "{quote}{}{quote}",
        text.replace(quote, &format!("{quote}{quote}"))
    )
}
