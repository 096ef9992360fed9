//! The history: the table in a tenant's database that says which steps it has.

use std::collections::BTreeMap;

use tokio_postgres::{Client, SimpleQueryMessage, error::SqlState};

use super::{
    checked::{CheckedSchema, named},
    failure::{self, StepFailure, Stop, diverged},
    sql,
    step::{Checksum, Step, from_hex, mark, to_hex},
};

/// The rows of the history. It is empty if there is no table.
#[derive(Debug, Default)]
pub(super) struct History {
    /// `false` if there is no table.
    pub(super) exists: bool,
    rows: BTreeMap<i64, Row>,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    checksum: Checksum,
    /// `false` if the step was begun, outside of a transaction.
    done: bool,
}

/// The answer to a simple query.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// The first column of the last row.
    pub(super) text: String,
    /// Number of rows that the last statement has returned or written.
    pub(super) rows: u64,
}

/// Runs `sql`.
pub(super) async fn ask(client: &Client, sql: &str) -> Result<Answer, tokio_postgres::Error> {
    let mut answer = Answer::default();
    for message in client.simple_query(sql).await? {
        match message {
            SimpleQueryMessage::Row(row) => {
                row.get(0).unwrap_or_default().clone_into(&mut answer.text);
            }
            SimpleQueryMessage::CommandComplete(rows) => answer.rows = rows,
            _ => {}
        }
    }
    Ok(answer)
}

impl History {
    pub(super) async fn read(client: &Client) -> Result<Self, Stop> {
        match ask(client, sql::READ).await {
            Ok(answer) => Ok(Self {
                exists: true,
                rows: answer.text.split(',').filter_map(parse_row).collect(),
            }),
            Err(err) if is_missing(&err) => Ok(Self::default()),
            Err(err) => Err(failure::of_history(err)),
        }
    }

    /// Returns the highest version that is applied; 0 for none.
    pub(super) fn highest(&self) -> i64 {
        let done = self.rows.iter().filter(|(_, row)| row.done);
        done.map(|(version, _)| *version).max().unwrap_or(0)
    }

    pub(super) fn has(&self, version: i64) -> bool {
        self.rows.get(&version).is_some_and(|row| row.done)
    }

    /// Notes that `step` is applied now.
    pub(super) fn note_applied(&mut self, step: &Step) {
        let (checksum, done) = (step.checksum, true);
        self.rows.insert(step.version, Row { checksum, done });
    }

    /// Returns the combined marks of the applied steps. A step with an accepted text counts as the program's own; one
    /// that only an older release knows does not count.
    pub(super) fn digest(&self, schema: &CheckedSchema) -> i64 {
        let latest = schema.latest();
        let done = self.rows.iter().filter(|(_, row)| row.done);
        let marks = done.map(|(version, row)| match schema.find(*version) {
            Some(step) if step.matches(&row.checksum) => step.mark,
            None if *version < latest => 0,
            _ => mark(*version, &row.checksum),
        });
        marks.fold(0, |digest, mark| digest ^ mark)
    }

    /// Returns the highest applied version of the steps that a campaign has to name; 0 for none.
    pub(super) fn contracted(&self, schema: &CheckedSchema) -> i64 {
        let steps = schema.steps.iter().filter(|it| it.contract);
        let applied = steps.map(|it| it.version).filter(|it| self.has(*it));
        applied.max().unwrap_or(0)
    }

    /// Returns the steps up to `version` that are not recorded as applied.
    pub(super) fn missing_up_to<'a>(
        &self,
        schema: &'a CheckedSchema,
        version: i64,
    ) -> Vec<&'a Step> {
        let steps = schema.steps.iter();
        steps
            .filter(|step| step.version <= version && !self.has(step.version))
            .collect()
    }

    /// Returns the steps that are to be applied, in order. Rows of other steps are no error: a newer release may have
    /// written them, or an older one whose steps were put together.
    pub(super) fn pending<'a>(
        &self,
        schema: &'a CheckedSchema,
    ) -> Result<Vec<&'a Step>, StepFailure> {
        let highest = self.highest();
        let mut pending = Vec::new();
        for step in &schema.steps {
            match self.rows.get(&step.version).filter(|row| row.done) {
                Some(row) if step.matches(&row.checksum) => {}
                Some(row) => return Err(edited(step, &row.checksum)),
                None if step.version < highest && !schema.settings.out_of_order => {
                    return Err(late(step, highest));
                }
                None if step.version > schema.latest() => {} // a campaign has to name it
                None => pending.push(step),
            }
        }
        Ok(pending)
    }
}

/// Returns whether the history's table or its schema does not exist.
fn is_missing(err: &tokio_postgres::Error) -> bool {
    let codes = [&SqlState::UNDEFINED_TABLE, &SqlState::INVALID_SCHEMA_NAME];
    err.code().is_some_and(|code| codes.contains(&code))
}

fn parse_row(row: &str) -> Option<(i64, Row)> {
    let mut fields = row.split(':');
    let version = fields.next()?.parse().ok()?;
    let checksum = from_hex(fields.next()?).unwrap_or_default(); // another length matches no step
    let done = fields.next()? == "1";
    Some((version, Row { checksum, done }))
}

fn edited(step: &Step, applied: &Checksum) -> StepFailure {
    let (step_name, version, applied) = (named(step), step.version, to_hex(applied));
    let message = format!(
        "{step_name} was applied to this tenant's database with another text; undo the edit and add a step instead, or \
         accept the earlier text: `.accept({version}, \"{applied}\")`"
    );
    diverged(step, message)
}

fn late(step: &Step, highest: i64) -> StepFailure {
    let step_name = named(step);
    let message = format!(
        "{step_name} is missing in this tenant's database, which has step {highest} already; give it a higher version, \
         or allow it with `Schema::out_of_order`"
    );
    diverged(step, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Schema;

    fn history(rows: &[(i64, &Step, bool)]) -> History {
        let row = |(version, step, done): &(i64, &Step, bool)| {
            let (checksum, done) = (step.checksum, *done);
            (*version, Row { checksum, done })
        };
        History {
            exists: true,
            rows: rows.iter().map(row).collect(),
        }
    }

    fn three() -> Schema {
        Schema::new()
            .step(1, "a", "SELECT 1")
            .step(3, "b", "SELECT 3")
            .step(5, "c", "SELECT 5")
    }

    #[test]
    fn pending_is_what_the_database_lacks_unless_it_has_diverged() {
        let schema = CheckedSchema::new(three()).unwrap();
        let [a, b, c] = &schema.steps[..] else {
            unreachable!()
        };
        let pending = |rows: &[(i64, &Step, bool)]| {
            let found = history(rows).pending(&schema);
            found.map(|steps| steps.iter().map(|it| it.version).collect::<Vec<_>>())
        };
        assert_eq!(pending(&[]).unwrap(), [1, 3, 5]);
        assert_eq!(pending(&[(1, a, true)]).unwrap(), [3, 5]);
        assert_eq!(pending(&[(1, a, true), (3, b, false)]).unwrap(), [3, 5]);
        let all = [(1, a, true), (3, b, true), (5, c, true), (9, a, true)];
        assert_eq!(pending(&all).unwrap(), [0; 0], "a newer release was here");
        assert_eq!(history(&all).highest(), 9);
        let edited = pending(&[(1, b, true)]).unwrap_err();
        assert!(edited.is_divergence() && edited.step == 1);
        assert!(edited.error.to_string().contains(&to_hex(&b.checksum)));
        let late = pending(&[(1, a, true), (5, c, true)]).unwrap_err().error;
        assert!(
            late.to_string().contains("step 3 (\"b\") is missing"),
            "{late}"
        );

        let lenient = three().out_of_order().accept(1, to_hex(&b.checksum));
        let lenient = CheckedSchema::new(lenient).unwrap();
        let rows = history(&[(1, b, true), (5, c, true)]);
        let versions: Vec<_> = rows
            .pending(&lenient)
            .unwrap()
            .iter()
            .map(|it| it.version)
            .collect();
        assert_eq!(versions, [3]);
    }

    #[test]
    fn the_digest_of_a_complete_history_is_that_of_the_steps_also_with_an_accepted_text() {
        let schema = CheckedSchema::new(three()).unwrap();
        let [a, b, c] = &schema.steps[..] else {
            unreachable!()
        };
        let digest = |rows: &[(i64, &Step, bool)]| history(rows).digest(&schema);
        let whole = a.mark ^ b.mark ^ c.mark;
        assert_eq!(digest(&[(1, a, true), (3, b, true), (5, c, true)]), whole);
        let edited = history(&[(1, b, true), (3, b, true), (5, c, true)]);
        assert_ne!(edited.digest(&schema), whole);
        let accepting = three().accept(1, to_hex(&b.checksum));
        let accepting = CheckedSchema::new(accepting).unwrap();
        assert_eq!(edited.digest(&accepting), whole);
        assert_eq!(digest(&[(1, a, true), (3, b, false)]), a.mark);
        let squashed = [(1, a, true), (2, a, true), (3, b, true), (5, c, true)];
        assert_eq!(digest(&squashed), whole, "of an older release");
        assert_ne!(digest(&[(1, a, true), (9, a, true)]), a.mark);
    }
}
