//! The version that a program needs, and the outcome of comparing a tenant with it.

use super::{checked::CheckedSchema, state::SchemaState};
use crate::model::error::{Error, ErrorKind, SchemaFault, Stage};

/// The effect of an access on a tenant whose schema is not current. Set by
/// [`Schema::on_access`](crate::Schema::on_access).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum OnAccess {
    /// A tenant below [`requires`](crate::Schema::requires) is migrated before its callers get a connection. They wait
    /// to their own deadlines. A tenant at or above it is served at once, and migrated in the background while its
    /// database is awake.
    #[default]
    Migrate,
    /// A tenant below [`requires`](crate::Schema::requires) is refused until you call
    /// [`migrate`](crate::TenantRouter::migrate). Others are served. An access migrates nothing.
    Refuse,
    /// Each tenant is served, at whatever version. An access migrates nothing.
    Serve,
}

/// The schema of a tenant, compared with this program's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub(crate) enum Standing {
    /// Nothing is to be done.
    Current = 0,
    /// The program works with it, and has steps that it lacks.
    Behind = 1,
    /// The program cannot work with it, or its version is not known.
    TooOld = 2,
}

impl Standing {
    /// Returns the name in explanations.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Behind => "behind",
            Self::TooOld => "too_old",
        }
    }

    /// Returns the standing with that number, the last one for a number that is none.
    pub(crate) const fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Current,
            1 => Self::Behind,
            _ => Self::TooOld,
        }
    }
}

impl CheckedSchema {
    pub(crate) fn on_access(&self) -> OnAccess {
        self.settings.on_access
    }

    /// Returns the lowest version with which the program works.
    pub(crate) fn required(&self) -> i64 {
        let requires = self.settings.requires;
        requires.unwrap_or_else(|| self.before_contract())
    }

    /// Returns the standing of a tenant in `state`, as far as accesses are concerned.
    pub(crate) fn standing(&self, state: &SchemaState) -> Standing {
        if self.on_access() == OnAccess::Serve || self.is_current(state) {
            Standing::Current
        } else if state.version >= self.required() {
            Standing::Behind
        } else {
            Standing::TooOld
        }
    }

    /// Returns the standing of a tenant of which nothing is known yet.
    pub(crate) fn unknown_standing(&self) -> Standing {
        self.standing(&SchemaState::default())
    }

    /// Returns the error for a caller of a tenant that is too old, and that an access does not migrate.
    pub(crate) fn too_old(&self) -> Error {
        let message = format!(
            "the tenant's schema is older than this program needs (version {}), and accesses do not migrate it; call \
             `TenantRouter::migrate`, or set `Schema::on_access(OnAccess::Migrate)`",
            self.required()
        );
        Error::new(ErrorKind::Schema(SchemaFault::TooOld), message).with_stage(Stage::Migrate)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Standing::{Behind, Current, TooOld},
        *,
    };
    use crate::schema::Schema;

    fn schema() -> Schema {
        let steps = [(1, "a"), (2, "b"), (3, "c")];
        let add = |schema: Schema, (version, name)| schema.step(version, name, "SELECT 1");
        steps.into_iter().fold(Schema::new(), add)
    }

    #[test]
    fn a_program_serves_from_the_version_on_that_it_requires() {
        let standings = |schema: Schema| {
            let checked = CheckedSchema::new(schema).unwrap();
            let at = |version| {
                let known = checked.state_at(version);
                checked.standing(&known.unwrap_or(SchemaState {
                    version,
                    ..SchemaState::default()
                }))
            };
            [0, 1, 2, 3, 4].map(at)
        };
        let all = [TooOld, TooOld, TooOld, Current, Current];
        assert_eq!(standings(schema()), all);
        assert_eq!(standings(schema().on_access(OnAccess::Refuse)), all);
        let from_two = [TooOld, TooOld, Behind, Current, Current];
        assert_eq!(standings(schema().requires(2)), from_two);
        let any = [Behind, Behind, Behind, Current, Current];
        assert_eq!(standings(schema().requires(0)), any);
        assert_eq!(standings(schema().on_access(OnAccess::Serve)), [Current; 5]);
    }

    #[test]
    fn a_version_that_no_database_can_have_is_not_required() {
        for wrong in [-1, 4] {
            let err = schema().requires(wrong).check().unwrap_err().to_string();
            assert!(err.contains(&format!("requires({wrong})")), "{err}");
        }
        for right in [0, 1, 3] {
            schema().requires(right).check().unwrap();
        }
    }

    #[test]
    fn a_standing_is_read_as_it_was_written() {
        for standing in [Standing::Current, Standing::Behind, Standing::TooOld] {
            assert_eq!(Standing::from_number(standing as u8), standing);
        }
    }
}
