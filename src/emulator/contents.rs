//! What is in a compute's database from its first start on.

use super::scram::Verifier;
use crate::secret::Secret;

/// The database, its owner, and what the owner must prove.
#[derive(Clone, Debug)]
pub(super) struct Contents {
    pub(super) database: String,
    pub(super) role: String,
    pub(super) password: Secret,
    pub(super) verifier: Verifier,
}

impl Contents {
    /// What a client that logs in as `role` must prove; one that nobody can prove if there is no such role.
    pub(super) fn verifier(&self, role: &str) -> Verifier {
        if role == self.role {
            self.verifier.clone()
        } else {
            Verifier::mock()
        }
    }

    /// Whether `password` is that of `role`.
    pub(super) fn takes(&self, role: &str, password: &Secret) -> bool {
        role == self.role && *password == self.password
    }

    /// What makes it of the template: the role's password, and whatever the template does not have.
    pub(super) fn statements(&self) -> Vec<String> {
        let Self {
            database,
            role,
            verifier,
            ..
        } = self;
        let name = quoted(role, '"');
        // Its verifier, not the password itself: drivers log the statements they run.
        let verifier = quoted(verifier.expose(), '\'');
        let mut sql = vec![format!("ALTER ROLE {name} PASSWORD {verifier}")];
        if role != "neondb_owner" {
            sql.insert(
                0,
                format!("CREATE ROLE {name} LOGIN CREATEDB CREATEROLE BYPASSRLS"),
            );
        }
        if role != "neondb_owner" && database == "neondb" {
            sql.push(format!("ALTER DATABASE neondb OWNER TO {name}"));
        }
        if database != "neondb" {
            sql.push(format!(
                "CREATE DATABASE {} OWNER {name}",
                quoted(database, '"')
            ));
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
