//! The text of an explanation, for people.

use std::fmt;

use super::{Explanation, NextGet, PoolState, PriorWake, RefusalState, Remembered, SchemaPosition};

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "tenant {:?}", self.tenant)?;
        writeln!(f, "next get: {}", self.next)?;
        writeln!(f, "catalog: {}", self.catalog)?;
        if let Some(stage) = self.flight {
            writeln!(f, "under way: {stage}")?;
        }
        if let Some(refusal) = &self.refusal {
            let RefusalState {
                code,
                message,
                left,
            } = refusal;
            writeln!(f, "refused for {left:.1?} more: {code}: {message}")?;
        }
        if let Some(schema) = &self.schema {
            writeln!(f, "schema: {schema}")?;
        }
        match &self.pool {
            Some(pool) => writeln!(f, "pool: {pool}")?,
            None => writeln!(f, "pool: none")?,
        }
        for PriorWake {
            ago,
            took,
            reason,
            failure,
        } in &self.wakes
        {
            write!(f, "wake {ago:.1?} ago, for {reason}: ")?;
            match failure {
                None => writeln!(f, "up after {took:.1?}")?,
                Some(code) => writeln!(f, "{code} after {took:.1?}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for NextGet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reuse => "returns an idle connection at once",
            Self::Verify => "returns an idle connection, after the server has answered on it",
            Self::Open => "opens a connection; the database is awake",
            Self::Wait => "waits for a connection that is in use or being opened; the limit on connections is reached",
            Self::Wake => "wakes the database",
            Self::JoinWake => "waits for the wake under way",
            Self::LookUp => "looks the tenant up, creates its database if that is allowed, and wakes it",
            Self::JoinLookUp => "waits for the lookup or creation under way",
            Self::Migrate => "migrates the schema, which is too old for this program, or waits for that",
            Self::Refuse => "returns a remembered error at once",
            Self::Closed => "returns an error, because the router is closed",
        })
    }
}

impl fmt::Display for Remembered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotKept => f.write_str("the application's own lookup, called each time"),
            Self::Nothing => f.write_str("not read yet"),
            Self::At { host, stale: false } => write!(f, "at {host}"),
            Self::At { host, stale: true } => write!(f, "at {host}; will be read again"),
            Self::NoSuchTenant => f.write_str("no such tenant"),
            Self::Unfinished => f.write_str("its database is being created"),
            Self::Denied(code) => write!(f, "must not be used: {code}"),
        }
    }
}

impl fmt::Display for SchemaPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            requires, latest, ..
        } = self;
        f.write_str(match self.standing {
            "current" => "current",
            "behind" => "behind",
            _ => "too old, or not known",
        })?;
        write!(f, "; requires {requires}, latest is {latest}")?;
        match self.step {
            None => {}
            Some(0) => f.write_str("; a migration is under way")?,
            Some(step) => write!(f, "; step {step} is being applied")?,
        }
        if let Some(failure) = &self.failure {
            write!(f, "; failed: {failure}")?;
        }
        Ok(())
    }
}

impl fmt::Display for PoolState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            host,
            open,
            idle,
            opening,
            waiting,
            limit,
            because,
            ..
        } = self;
        let state = if self.asleep {
            "believed asleep"
        } else {
            "awake"
        };
        write!(
            f,
            "at {host}, {state}: {because}; {open} open of {limit}, {idle} idle, {opening} opening, {waiting} waiting"
        )?;
        if let Some(code) = self.last_failure {
            write!(f, "; last failure: {code}")?;
        }
        if !self.cached {
            f.write_str("; not in the cache")?;
        }
        Ok(())
    }
}
