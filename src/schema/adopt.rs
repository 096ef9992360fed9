//! The first row of the history: the table, and the steps that a database has already.

use sha2::{Digest, Sha384};
use tokio_postgres::Client;

use super::{
    builder::Baseline,
    checked::{CheckedSchema, named},
    failure::{self, Stop, diverged, failed},
    history::{History, ask},
    runner::lost_session,
    session::RunError,
    sql,
    step::{Step, Work, to_hex},
};

/// Creates the history of a database before the application's prepare hook runs there, unless it has one: tables that a
/// hook leaves behind must not be taken for those of an earlier tool. The lock is held.
pub(crate) async fn prepare_history(
    client: &Client,
    schema: &CheckedSchema,
) -> Result<(), RunError> {
    let created = async {
        if History::read(client).await?.exists {
            return Ok(());
        }
        create_history(client, schema).await
    };
    created.await.map_err(|stop| match stop {
        Stop::Failed(failure) => RunError::of(failure),
        Stop::Doubtful(err) => RunError::Later(lost_session(err)),
    })
}

/// Creates the history in a database that has none, with the rows of the baseline, in one transaction. The lock is
/// held.
pub(super) async fn create_history(client: &Client, schema: &CheckedSchema) -> Result<(), Stop> {
    let (steps, by) = match schema.settings.baseline {
        Baseline::Nothing => (Vec::new(), ""),
        Baseline::At(version) => (up_to(client, schema, version).await?, "baseline"),
        Baseline::Refinery => (refinery(client, schema).await?, "refinery"),
        Baseline::Sqlx => (sqlx(client, schema).await?, "sqlx"),
    };
    let mut text = "BEGIN; ".to_owned();
    if !says_true(client, sql::HAS_SCHEMA).await? {
        text.push_str(sql::CREATE_SCHEMA); // IF NOT EXISTS would ask for the privilege in any case
    }
    text.push_str(sql::CREATE_TABLE);
    for step in steps {
        text.push_str(&sql::baseline(step, by));
    }
    text.push_str("COMMIT");
    let created = client.batch_execute(&text).await;
    created.map_err(failure::of_history)
}

/// Records `steps` as applied, in one transaction, because an operator says that they are. The lock is held.
pub(super) async fn record_applied(client: &Client, steps: &[&Step]) -> Result<(), Stop> {
    let rows: String = steps.iter().map(|step| sql::applied(step)).collect();
    let recorded = client.batch_execute(&format!("BEGIN; {rows}COMMIT")).await;
    recorded.map_err(failure::of_history)
}

async fn says_true(client: &Client, sql: &str) -> Result<bool, Stop> {
    let answer = ask(client, sql).await.map_err(failure::of_history)?;
    Ok(answer.text == "true")
}

/// Returns the steps up to `version` if the database has a table.
async fn up_to<'a>(
    client: &Client,
    schema: &'a CheckedSchema,
    version: i64,
) -> Result<Vec<&'a Step>, Stop> {
    let has_table = says_true(client, sql::HAS_TABLE).await?;
    let steps = schema.steps.iter();
    Ok(steps
        .filter(|step| has_table && step.version <= version)
        .collect())
}

async fn refinery<'a>(client: &Client, schema: &'a CheckedSchema) -> Result<Vec<&'a Step>, Stop> {
    if !says_true(client, sql::HAS_REFINERY).await? {
        return Ok(Vec::new());
    }
    let answer = ask(client, sql::REFINERY)
        .await
        .map_err(failure::of_history)?;
    let versions: Vec<i64> = answer
        .text
        .split(',')
        .filter_map(|it| it.parse().ok())
        .collect();
    let steps = schema.steps.iter();
    Ok(steps
        .filter(|step| versions.contains(&step.version))
        .collect())
}

async fn sqlx<'a>(client: &Client, schema: &'a CheckedSchema) -> Result<Vec<&'a Step>, Stop> {
    if !says_true(client, sql::HAS_SQLX).await? {
        return Ok(Vec::new());
    }
    let answer = ask(client, sql::SQLX).await.map_err(failure::of_history)?;
    let mut adopted = Vec::new();
    for row in answer.text.split(',').filter(|row| !row.is_empty()) {
        let mut fields = row.split(':');
        let version = fields.next().and_then(|it| it.parse::<i64>().ok());
        let (checksum, success) = (
            fields.next().unwrap_or_default(),
            fields.next() == Some("1"),
        );
        let Some(step) = schema
            .steps
            .iter()
            .find(|step| Some(step.version) == version)
        else {
            continue;
        };
        if !success {
            let message = format!(
                "sqlx has left {} half done in this tenant's database; finish it and set `success` in its row of \
                 _sqlx_migrations, or undo it and delete the row",
                named(step)
            );
            return Err(failed(step, message).into());
        }
        if !is_sqlx_checksum(step, checksum) {
            let message = format!(
                "{} was applied to this tenant's database by sqlx with another text; restore the text of its file",
                named(step)
            );
            return Err(diverged(step, message).into());
        }
        adopted.push(step);
    }
    Ok(adopted)
}

/// Returns whether `checksum` is sqlx's of the step's text. Code, as it has no text, is compared with nothing.
fn is_sqlx_checksum(step: &Step, checksum: &str) -> bool {
    let Work::Sql(sql) = &step.work else {
        return true;
    };
    to_hex(&Sha384::digest(sql.as_bytes())) == checksum
}
