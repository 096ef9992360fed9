//! The schema after its checks, as the runner uses it.

use std::{sync::Arc, time::Duration};

use sha2::{Digest, Sha256};

use super::{
    builder::{Baseline, Schema, Settings},
    state::{SchemaFailure, SchemaState},
    statements,
    step::{Step, Work, first_bytes, from_hex, latest},
};
use crate::model::{
    config::{InvalidConfig, check_limit},
    error::Error,
};

/// Longest name of a step.
const LONGEST_NAME: usize = 200;

/// A [`Schema`] that has passed its checks.
#[derive(Clone, Debug)]
pub(crate) struct CheckedSchema {
    /// At least one, by ascending versions.
    pub(super) steps: Vec<Step>,
    /// The highest version that is applied.
    latest: i64,
    pub(super) settings: Settings,
}

impl CheckedSchema {
    /// Checks `schema`.
    pub(crate) fn new(schema: Schema) -> Result<Arc<Self>, InvalidConfig> {
        check(schema)
            .map(Arc::new)
            .map_err(|why| InvalidConfig::new(format!("the schema: {why}")))
    }

    /// Returns the longest time for one tenant.
    pub(crate) fn timeout(&self) -> Duration {
        self.settings.timeout
    }

    /// Returns the highest version that is applied.
    pub(crate) fn latest(&self) -> i64 {
        self.latest
    }

    /// Returns the version before the first step that a campaign has to name.
    pub(crate) fn before_contract(&self) -> i64 {
        latest(&self.steps)
    }

    /// Returns the schema that also applies the steps up to `version`, which a campaign has to name; `None` if
    /// `version` is no such step.
    pub(crate) fn up_to_contract(&self, version: i64) -> Option<Arc<Self>> {
        self.find(version).filter(|step| step.contract)?;
        let latest = version;
        Some(Arc::new(Self {
            latest,
            ..self.clone()
        }))
    }

    /// Returns version and name of each step that is applied.
    pub(crate) fn steps(&self) -> impl Iterator<Item = (i64, &str)> {
        let steps = self.steps.iter().filter(|it| it.version <= self.latest);
        steps.map(|step| (step.version, step.name.as_str()))
    }

    /// Returns whether a database in `state` has all steps, or was migrated by a newer release.
    pub(crate) fn is_current(&self, state: &SchemaState) -> bool {
        let latest = self.latest();
        state.version > latest || state.version == latest && state.digest == self.digest_at(latest)
    }

    /// Returns the state of a database that has the steps up to `version`, as an operator says; `None` if no step has
    /// that version.
    pub(crate) fn state_at(&self, version: i64) -> Option<SchemaState> {
        self.find(version)?;
        Some(SchemaState {
            version,
            digest: self.digest_at(version),
            baseline: Some(version),
            ..SchemaState::default()
        })
    }

    /// Returns the error for a migration that must not be tried now, because the last one of the same step has failed.
    pub(crate) fn held_back(&self, state: &SchemaState) -> Option<Error> {
        let failure = state.failure.as_ref()?;
        // A step of another release, or one that has changed, is not judged by that failure.
        let is_ours = |failure: &SchemaFailure| match failure.step {
            0 => true,
            version => self
                .find(version)
                .is_some_and(|it| it.revision == failure.mark),
        };
        let waits = failure.retry.is_none_or(|left| !left.is_zero());
        (waits && is_ours(failure)).then(|| failure.error())
    }

    /// Returns the combined marks of the steps up to `version`.
    fn digest_at(&self, version: i64) -> i64 {
        let steps = self.steps.iter().filter(|step| step.version <= version);
        steps.fold(0, |digest, step| digest ^ step.mark)
    }

    pub(super) fn find(&self, version: i64) -> Option<&Step> {
        self.steps.iter().find(|step| step.version == version)
    }
}

fn check(schema: Schema) -> Result<CheckedSchema, String> {
    let Schema {
        mut steps,
        settings,
        fault,
        accepted,
        released,
    } = schema;
    if let Some(fault) = fault {
        return Err(fault);
    }
    if steps.is_empty() {
        return Err("it has no step".to_owned());
    }
    let mut before = 0;
    for step in &steps {
        check_version(step, before)?;
        before = step.version;
        check_step(step).map_err(|why| format!("{}: {why}", named(step)))?;
    }
    for (version, checksum) in accepted {
        let step = steps.iter_mut().find(|step| step.version == version);
        let is_sql = |step: &&mut Step| matches!(step.work, Work::Sql(_));
        match (step.filter(is_sql), from_hex(&checksum)) {
            (Some(step), Some(checksum)) => step.accepted.push(checksum),
            (None, _) => {
                return Err(format!(
                    "`accept` names step {version}, which is no step of SQL"
                ));
            }
            (_, None) => {
                return Err(format!(
                    "`accept` of step {version} needs a checksum of 64 hexadecimal digits"
                ));
            }
        }
    }
    if let Baseline::At(version) = settings.baseline
        && !steps.iter().any(|step| step.version == version)
    {
        return Err(format!("`Baseline::At({version})` names no step"));
    }
    check_contract(&steps)?;
    let latest = latest(&steps);
    if let Some(version) = settings.requires
        && !(0..=latest).contains(&version)
    {
        return Err(format!(
            "`requires({version})` is not between 0 and the latest version, {latest}"
        ));
    }
    check_limits(&steps, &settings).map_err(|err| err.to_string())?;
    check_released(&steps, released.as_deref().unwrap_or_default())?;
    for step in &mut steps {
        step.revision = revision(step, &settings);
    }
    Ok(CheckedSchema {
        steps,
        latest,
        settings,
    })
}

/// Checks that the steps that are held back are the last ones.
fn check_contract(steps: &[Step]) -> Result<(), String> {
    let Some(first) = steps.iter().position(|step| step.contract) else {
        return Ok(());
    };
    if first == 0 {
        return Err(format!(
            "{} is the first one, so it takes nothing away; remove `contract`",
            named(&steps[first])
        ));
    }
    match steps[first..].iter().find(|step| !step.contract) {
        None => Ok(()),
        Some(after) => Err(format!(
            "{} comes after {}, which is held back; once the campaign of that step has ended, remove `contract` from it",
            named(after),
            named(&steps[first])
        )),
    }
}

/// Returns the revision of a step.
fn revision(step: &Step, settings: &Settings) -> i64 {
    let lock = step.lock_timeout.unwrap_or(Some(settings.lock_timeout));
    let statement = step
        .statement_timeout
        .unwrap_or(Some(settings.statement_timeout));
    let text = format!(
        "{} {lock:?} {statement:?} {}",
        step.outside, settings.out_of_order
    );
    let digest = Sha256::new()
        .chain_update(step.mark.to_be_bytes())
        .chain_update(text);
    let digest = step.accepted.iter().fold(digest, Sha256::chain_update);
    first_bytes(&digest.finalize())
}

fn check_version(step: &Step, before: i64) -> Result<(), String> {
    let version = step.version;
    if version <= 0 {
        return Err(format!(
            "{}: its version must be more than zero",
            named(step)
        ));
    }
    if version == before {
        return Err(format!(
            "two steps have the version {version}; give the later one a higher version"
        ));
    }
    if version < before {
        return Err(format!(
            "{} comes after step {before}; sort the steps by version",
            named(step)
        ));
    }
    Ok(())
}

fn check_step(step: &Step) -> Result<(), String> {
    let is_odd = |it: char| matches!(it, '\'' | '\\') || it.is_control();
    let length = step.name.chars().count();
    if length == 0 || length > LONGEST_NAME || step.name.contains(is_odd) {
        return Err(format!(
            "its name must have 1 to {LONGEST_NAME} characters, without quotes, backslashes and control characters"
        ));
    }
    let sql = match &step.work {
        Work::Sql(sql) => sql,
        Work::Code(_) if step.outside => {
            return Err(
                "a step of code never runs in a transaction of tenantry's; leave out \
                        `outside_transaction`"
                    .to_owned(),
            );
        }
        Work::Code(_) => return Ok(()),
    };
    if sql.contains('\0') {
        return Err("its text has a character that Postgres does not take (NUL)".to_owned());
    }
    if statements::is_empty(sql) {
        return Err("it has no statement".to_owned());
    }
    if step.outside {
        statements::check_outside(sql)
    } else {
        statements::check_in_transaction(sql)
    }
}

fn check_limits(steps: &[Step], settings: &Settings) -> Result<(), InvalidConfig> {
    check_limit("lock_timeout", settings.lock_timeout)?;
    check_limit("statement_timeout", settings.statement_timeout)?;
    check_limit("timeout", settings.timeout)?;
    for step in steps {
        let limits = [
            ("step_lock_timeout", step.lock_timeout),
            ("step_statement_timeout", step.statement_timeout),
        ];
        for (name, limit) in limits {
            if let Some(Some(limit)) = limit {
                check_limit(&format!("{name} of {}", named(step)), limit)?;
            }
        }
    }
    Ok(())
}

/// Compares the steps with `lock`, which has a line for each released one.
fn check_released(steps: &[Step], lock: &str) -> Result<(), String> {
    let lines = lock.lines().map(str::trim);
    for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let mut words = line.splitn(3, ' ');
        let version = words.next().and_then(|it| it.parse::<i64>().ok());
        let checksum = words.next().and_then(from_hex);
        let (Some(version), Some(checksum)) = (version, checksum) else {
            return Err(format!(
                "`released` has the line {line:?}, which `to_lock` did not write"
            ));
        };
        let step = steps.iter().find(|step| step.version == version);
        let step = step.ok_or_else(|| format!("step {version} was released and is gone"))?;
        if !step.matches(&checksum) {
            return Err(format!(
                "{} was released with another text; databases have the earlier one already, so undo the edit and add a \
                 step, or `accept` the earlier checksum",
                named(step)
            ));
        }
    }
    Ok(())
}

/// Returns version and name of a step, for messages.
pub(super) fn named(step: &Step) -> String {
    format!("step {} ({:?})", step.version, step.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "CREATE TABLE t (a int)";

    fn fault(schema: &Schema) -> String {
        schema.check().unwrap_err().to_string()
    }

    #[test]
    fn each_mistake_is_found_at_build_and_named() {
        let one = || Schema::new().step(1, "t", TABLE);
        let day = Duration::from_secs(25 * 3600);
        for (schema, why) in [
            (Schema::new(), "no step"),
            (one().step(1, "u", TABLE), "two steps have the version 1"),
            (
                Schema::new().step(2, "t", TABLE).step(1, "u", TABLE),
                "step 1 (\"u\") comes after step 2",
            ),
            (Schema::new().step(0, "t", TABLE), "more than zero"),
            (Schema::new().step(1, "", TABLE), "its name"),
            (Schema::new().step(1, "it's", TABLE), "its name"),
            (Schema::new().step(1, "t", "-- nothing"), "no statement"),
            (Schema::new().step(1, "t", "SELECT 1\0"), "NUL"),
            (
                Schema::new().step(1, "t", "COMMIT"),
                "step 1 (\"t\"): it runs in a transaction",
            ),
            (Schema::new().step(1, "t", "VACUUM"), "outside_transaction"),
            (
                Schema::new()
                    .step(1, "t", "VACUUM a; VACUUM b")
                    .outside_transaction(),
                "one statement",
            ),
            (
                Schema::new()
                    .run(1, "c", |_| async { Ok(()) })
                    .outside_transaction(),
                "a step of code",
            ),
            (
                Schema::new().outside_transaction().step(1, "t", TABLE),
                "before the first step",
            ),
            (one().accept(2, "00"), "step 2"),
            (one().accept(1, "00"), "64 hexadecimal"),
            (one().baseline(Baseline::At(2)), "names no step"),
            (one().lock_timeout(Duration::ZERO), "lock_timeout"),
            (
                one().step_statement_timeout(day),
                "step_statement_timeout of step 1",
            ),
            (one().timeout(day), "timeout"),
            (one().contract(), "is the first one"),
            (
                one().step(2, "u", TABLE).contract().step(3, "v", TABLE),
                "step 3 (\"v\") comes after step 2 (\"u\")",
            ),
            (
                one().step(2, "u", TABLE).contract().requires(2),
                "the latest version, 1",
            ),
            (one().released("nonsense"), "`to_lock` did not write"),
            (one().files([("notes.sql", TABLE)]), "notes.sql"),
            (one().files([("2_x.down.sql", TABLE)]), "not there"),
        ] {
            let said = fault(&schema);
            assert!(said.contains(why), "{why}: {said}");
        }
    }

    #[test]
    fn a_released_step_may_neither_vanish_nor_change() {
        let two = Schema::new().step(1, "t", TABLE).step(2, "u", "SELECT 2");
        let lock = format!("# released\n\n{}", two.to_lock());
        two.clone().released(lock.clone()).check().unwrap();
        let grown = two.step(3, "v", "SELECT 3").released(lock.clone());
        grown.check().unwrap();
        let gone = Schema::new().step(1, "t", TABLE).released(lock.clone());
        assert!(fault(&gone).contains("step 2 was released and is gone"));
        let edited = || {
            Schema::new()
                .step(1, "t", TABLE)
                .step(2, "u", "SELECT 22")
                .released(lock.clone())
        };
        assert!(fault(&edited()).contains("step 2 (\"u\") was released with another text"));
        let earlier = lock
            .lines()
            .last()
            .unwrap()
            .split(' ')
            .nth(1)
            .unwrap()
            .to_owned();
        edited().accept(2, earlier).check().unwrap();
    }

    #[test]
    fn files_are_sorted_by_version_and_their_markers_are_taken() {
        let schema = Schema::new().files([
            ("V10__last.sql", "SELECT 10"),
            (
                "2_index.up.sql",
                "\u{feff}-- no-transaction\nCREATE INDEX CONCURRENTLY i ON t (a)",
            ),
            ("2_index.down.sql", "DROP INDEX i"),
            (
                "0001_first_of_all.sql",
                "-- tenantry: lock-timeout 5s\nSELECT 1",
            ),
        ]);
        schema.check().unwrap();
        let steps = &schema.steps;
        let named: Vec<_> = steps
            .iter()
            .map(|it| (it.version, it.name.as_str()))
            .collect();
        assert_eq!(named, [(1, "first of all"), (2, "index"), (10, "last")]);
        assert_eq!(steps[0].lock_timeout, Some(Some(Duration::from_secs(5))));
        assert!(steps[1].outside && !steps[0].outside);
        assert_eq!(schema.latest(), 10);
    }

    fn numbered(versions: &[i64]) -> Schema {
        versions.iter().fold(Schema::new(), |schema, version| {
            schema.step(*version, "t", format!("SELECT {version}"))
        })
    }

    #[test]
    fn a_state_is_current_if_it_has_our_steps_or_is_ahead_of_them() {
        let schema = CheckedSchema::new(numbered(&[1, 3])).unwrap();
        let mut state = SchemaState::default();
        assert!(!schema.is_current(&state));
        state = schema.state_at(1).unwrap();
        assert!(!schema.is_current(&state));
        state = schema.state_at(3).unwrap();
        assert!(schema.is_current(&state));
        state.digest ^= 1;
        assert!(!schema.is_current(&state), "another text was applied");
        state.version = 4;
        assert!(schema.is_current(&state), "a newer release was here");
        assert_eq!(schema.state_at(2), None);
        let longer = CheckedSchema::new(numbered(&[1, 2, 3])).unwrap();
        assert!(
            !longer.is_current(&schema.state_at(3).unwrap()),
            "a late merge"
        );
    }

    #[test]
    fn a_failure_holds_until_its_time_or_until_the_step_changes() {
        let schema = |sql: &'static str| Schema::new().step(1, "t", sql);
        let checked = |schema: Schema| CheckedSchema::new(schema).unwrap();
        let first = checked(schema(TABLE));
        let revision = first.steps[0].revision;
        let mut state = SchemaState {
            failure: Some(SchemaFailure::new(1, revision, "no")),
            ..SchemaState::default()
        };
        assert!(first.held_back(&state).is_some());
        let accepted = schema(TABLE).accept(1, "ab".repeat(32));
        for changed in [
            schema("CREATE TABLE u (a int)"),
            schema(TABLE).lock_timeout(Duration::from_secs(9)),
            schema(TABLE).step_statement_timeout(None),
            schema(TABLE).out_of_order(),
            accepted,
            numbered(&[2]),
        ] {
            assert!(checked(changed).held_back(&state).is_none());
        }
        let mut due = state.clone();
        due.failure.as_mut().unwrap().retry = Some(Duration::ZERO);
        assert!(first.held_back(&due).is_none());
        state.failure.as_mut().unwrap().retry = None;
        assert!(first.held_back(&state).is_some(), "in quarantine");
        state.failure = Some(SchemaFailure::new(0, 0, "no privilege"));
        assert!(first.held_back(&state).is_some());
    }
}
