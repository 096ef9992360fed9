//! Statements as a scripted backend sees them: by their first words.

use super::gate::Step;

#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Statement {
    /// By either of its names.
    Begin(&'static str),
    Commit,
    /// Commits, and begins the next at once.
    CommitAndChain,
    Rollback,
    /// To a savepoint: the transaction goes on.
    RollbackTo,
    /// Anything that answers with a row.
    Rows,
    /// A setting.
    Set,
    /// Anything else, with its answer.
    Other(String),
}

impl Statement {
    pub(super) fn parse(sql: &str) -> Self {
        let sql = sql.trim().to_uppercase();
        let mut words = sql.split_whitespace();
        let first = words.next().unwrap_or_default();
        match first {
            "BEGIN" => Self::Begin("BEGIN"),
            "START" => Self::Begin("START TRANSACTION"),
            "COMMIT" if words.any(|word| word == "CHAIN") => Self::CommitAndChain,
            "COMMIT" | "END" => Self::Commit,
            "ROLLBACK" | "ABORT" if words.any(|word| word == "TO") => Self::RollbackTo,
            "ROLLBACK" | "ABORT" => Self::Rollback,
            "SELECT" | "SHOW" | "TABLE" | "VALUES" | "WITH" => Self::Rows,
            "SET" => Self::Set,
            "INSERT" => Self::Other("INSERT 0 1".to_owned()),
            "DELETE" | "MERGE" | "UPDATE" => Self::Other(format!("{first} 1")),
            _ => Self::Other(first.to_owned()),
        }
    }

    /// The gate it comes to.
    pub(super) fn step(&self) -> Option<Step> {
        match self {
            Self::Begin(_) => Some(Step::Begin),
            Self::Commit | Self::CommitAndChain => Some(Step::Commit),
            Self::Rollback | Self::RollbackTo => Some(Step::Rollback),
            Self::Rows | Self::Other(_) => Some(Step::Query),
            Self::Set => None,
        }
    }

    /// Returns the server's command tag for it, by the transaction status before.
    pub(super) fn tag(&self, before: u8) -> &str {
        match self {
            Self::Begin(name) => name,
            Self::Commit | Self::CommitAndChain if before != b'E' => "COMMIT",
            Self::Commit | Self::CommitAndChain | Self::Rollback | Self::RollbackTo => "ROLLBACK",
            Self::Rows => "SELECT 1",
            Self::Set => "SET",
            Self::Other(tag) => tag,
        }
    }
}
