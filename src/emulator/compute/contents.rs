//! What is in a compute's database from its first start on.

use crate::emulator::proxy::scram::Verifier;
use crate::model::secret::Secret;

/// The database, its owner, and what the owner must prove.
#[derive(Clone, Debug)]
pub(in crate::emulator) struct Contents {
    pub(in crate::emulator) database: String,
    pub(in crate::emulator) role: String,
    pub(in crate::emulator) password: Secret,
    pub(in crate::emulator) verifier: Verifier,
}

impl Contents {
    /// What a client that logs in as `role` must prove; one that nobody can prove if there is no such role.
    pub(in crate::emulator) fn verifier(&self, role: &str) -> Verifier {
        if role == self.role {
            self.verifier.clone()
        } else {
            Verifier::mock()
        }
    }

    /// Whether `password` is that of `role`.
    pub(in crate::emulator) fn takes(&self, role: &str, password: &Secret) -> bool {
        role == self.role && *password == self.password
    }

    /// The same with another password.
    pub(in crate::emulator) fn with_password(&self, password: Secret) -> Self {
        let verifier = Verifier::of(&password);
        Self {
            password,
            verifier,
            ..self.clone()
        }
    }

    /// Sets the role's password.
    pub(in crate::emulator) fn password_statement(&self) -> String {
        let name = quoted(&self.role, '"');
        // Its verifier, not the password itself: drivers log the statements they run.
        let verifier = quoted(self.verifier.expose(), '\'');
        format!("ALTER ROLE {name} PASSWORD {verifier}")
    }

    /// What makes it of the template: the role's password, and whatever the template does not have.
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
