//! Cases about writes, and about writes that must be refused.

use std::time::{Duration, SystemTime};

use super::{LEASE, Outcome, Stage, equal, holds, tenant, until};
use crate::{
    catalog::{AfterWrite, Attempt, Catalog, Placement, Record, SchemaFailure, SchemaState, State},
    model::endpoint::{Encryption, Endpoint, SessionReset},
};

pub(super) async fn whole<R: Catalog>(stage: &Stage<R>) -> Outcome {
    for (at, suspend_window) in [None, Some(Duration::ZERO), Some(Duration::from_secs(90))]
        .into_iter()
        .enumerate()
    {
        let id = tenant(&format!("acme-{at}"));
        let (lease, fresh) = stage.granted(&id, "one", LEASE).await?;
        let mut record = full(stage, &fresh, at);
        if let Some(endpoint) = &mut record.endpoint {
            endpoint.suspend_window = suspend_window;
        }
        // The catalog sets these itself, and must ignore the written values.
        record.generation = 1000;
        (record.created_at, record.updated_at) = (SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH);
        record.leased_for = None;
        stage.wrote(&lease, &record, AfterWrite::Keep).await?;
        let found = stage.found(&id).await?;
        equal(
            "the time when the record was created",
            &found.created_at,
            &fresh.created_at,
        )?;
        holds(
            found.updated_at >= found.created_at,
            "the record was changed before it was created",
        )?;
        holds(found.leased_for.is_some(), "a write has ended the lease")?;
        same("the record", &found, &record)?;
    }
    let (id, none) = (
        tenant("acme-0"),
        Record::new(tenant("acme-0"), State::Creating),
    );
    let (lease, _) = stage.granted(&id, "one", LEASE).await?;
    stage.wrote(&lease, &none, AfterWrite::Keep).await?;
    same(
        "the record without its optional fields",
        &stage.found(&id).await?,
        &none,
    )
}

/// Returns a record with a value in each field.
fn full<R: Catalog>(stage: &Stage<R>, fresh: &Record, at: usize) -> Record {
    let mut record = fresh.clone();
    record.state = State::Preparing;
    let mut placement = Placement::new(format!("project \"{at}\" é"));
    placement.org = Some("org-1".into());
    placement.branch = Some("br-1".into());
    placement.endpoint = Some("ep-1".into());
    placement.region = Some("aws-us-east-2".into());
    record.placement = Some(placement);
    let mut endpoint = stage.endpoint("ep-1").port(65535);
    endpoint.is_neon = at == 1;
    if at == 2 {
        endpoint.encryption = Encryption::None;
    }
    endpoint.session_reset = [None, Some(SessionReset::Never), Some(SessionReset::Always)][at];
    record.endpoint = Some(endpoint);
    record.plan = Some("free".into());
    record.max_connections = [None, Some(1), Some(10_000)][at];
    record.schema = full_schema(at);
    record.attempts = vec!["a".into(), String::new(), "{\"b\", NULL}".into()];
    record.condemned = vec!["old-project".into()];
    record.last_error = Some("it\nfailed: 'é' \\ %".into());
    record
}

/// Returns the state of a schema with a value in each field, and no failure for the first record.
fn full_schema(at: usize) -> SchemaState {
    let mut schema = SchemaState {
        version: -7,
        contracted: i64::MAX,
        digest: i64::MIN,
        baseline: [None, Some(0), Some(5)][at],
        failure: None,
    };
    if at > 0 {
        let mut failure = SchemaFailure::new(8, -3, "step 8 (\"é\") failed: \\ '%'\n");
        failure.code = (at == 2).then(|| "42P01".to_owned());
        failure.attempts = [1, 1, 5][at];
        failure.diverged = at == 2;
        failure.retry = [None, None, Some(LEASE)][at];
        schema.failure = Some(failure);
    }
    schema
}

/// Checks that two records are equal, except for the fields that the catalog sets itself.
fn same(what: &str, found: &Record, written: &Record) -> Outcome {
    let mut expected = written.clone();
    expected.generation = found.generation;
    expected.leased_for = found.leased_for;
    (expected.created_at, expected.updated_at) = (found.created_at, found.updated_at);
    // The catalog counts these times.
    let (now, then) = (&found.schema.failure, &mut expected.schema.failure);
    if let (Some(now), Some(then)) = (now, then) {
        then.age = now.age;
        if then.retry.is_some() && now.retry.is_some() {
            then.retry = now.retry;
        }
    }
    equal(what, found, &expected)
}

pub(super) async fn passwords<R: Catalog>(stage: &Stage<R>) -> Outcome {
    if !stage.with_passwords {
        return Ok(());
    }
    let acme = tenant("acme");
    let (lease, mut record) = stage.brought(&acme, State::Ready, "p").await?;
    for password in ["a", "'é\u{1f600} \\ %s", &"x".repeat(1000), ""] {
        if let Some(endpoint) = &mut record.endpoint {
            endpoint.password = password.into();
        }
        stage.wrote(&lease, &record, AfterWrite::Keep).await?;
        let found = stage.found(&acme).await?.endpoint.map(|it| it.password);
        holds(
            found == Some(password.into()),
            "a password differs from the written one",
        )?;
    }
    Ok(())
}

pub(super) async fn transitions<R: Catalog>(stage: &Stage<R>) -> Outcome {
    for &old in State::ALL {
        for &new in State::ALL {
            let id = tenant(&format!("{}-{}", old.as_str(), new.as_str()));
            let (lease, mut record) = stage.brought(&id, old, &format!("p-{id}")).await?;
            record.state = new;
            let expected = if old.may_become(new) {
                stage.wrote(&lease, &record, AfterWrite::Keep).await?;
                new
            } else {
                stage
                    .refused(&lease, &record, &format!("{id} is written"))
                    .await?;
                old
            };
            equal("the state", &stage.found(&id).await?.state, &expected)?;
        }
    }
    Ok(())
}

/// A named change of a record.
type Change = (&'static str, fn(&mut Record));

const STAYS: [Change; 8] = [
    ("nothing", |_| {}),
    ("the plan", |it| it.plan = Some("pro".into())),
    ("the connection limit", |it| it.max_connections = Some(2)),
    ("the last error", |it| it.last_error = Some("no".into())),
    ("the schema", |it| it.schema.version = 9),
    ("the failure of the schema", |it| {
        it.schema.failure = Some(SchemaFailure::new(9, 0, "no"));
    }),
    ("the state", |it| it.state = State::Held),
    ("the attempts", |it| it.attempts.push("a".into())),
];

const RISES: [Change; 8] = [
    ("the host", |it| reach(it).direct_host.push('x')),
    ("the pooled host", |it| reach(it).pooled_host.push('x')),
    ("the port", |it| reach(it).port = 1),
    ("the database", |it| reach(it).database.push('x')),
    ("the role", |it| reach(it).role.push('x')),
    ("the suspend window", |it| reach(it).suspend_window = None),
    ("the project", |it| it.placement = Some(Placement::new("q"))),
    ("the endpoint to none", |it| it.endpoint = None),
];

const PASSWORD: Change = ("the password", |it| reach(it).password = "hunter3".into());

pub(super) async fn generation<R: Catalog>(stage: &Stage<R>) -> Outcome {
    let acme = tenant("acme");
    let (lease, mut record) = stage.brought(&acme, State::Ready, "p").await?;
    let mut last = stage.found(&acme).await?.generation;
    let stays = STAYS.map(|change| (change, false));
    let rises = RISES.map(|change| (change, true));
    let password = stage.with_passwords.then_some((PASSWORD, true));
    for ((what, change), rises) in stays.into_iter().chain(password).chain(rises) {
        change(&mut record);
        record.generation = 0;
        // The second write changes nothing.
        for rises in [rises, false] {
            stage.wrote(&lease, &record, AfterWrite::Keep).await?;
            let now = stage.found(&acme).await?.generation;
            let fits = if rises { now > last } else { now == last };
            let text =
                format!("after a change of {what}, the generation went from {last} to {now}");
            holds(fits, &text)?;
            last = now;
        }
    }
    Ok(())
}

/// Returns the endpoint in `record`, adding one if there is none.
fn reach(record: &mut Record) -> &mut Endpoint {
    record
        .endpoint
        .get_or_insert_with(|| Endpoint::postgres("h", "d", "r", ""))
}

pub(super) async fn one_database<R: Catalog>(stage: &Stage<R>) -> Outcome {
    let (one, other) = (tenant("one"), tenant("other"));
    let (first, mut record) = stage.brought(&one, State::Ready, "p").await?;
    stage.wrote(&first, &record, AfterWrite::Keep).await?;
    let (second, mut thief) = stage.granted(&other, "suite", LEASE).await?;
    thief.state = State::Preparing;
    thief.placement = Some(Placement::new("p"));
    thief.endpoint = Some(stage.endpoint("p"));
    stage
        .refused(&second, &thief, "the database of another tenant is written")
        .await?;
    let kept = stage.found(&other).await?;
    holds(kept.placement.is_none(), "a refused record was written")?;
    // Another database of the same project is refused, too: deleting a tenant deletes its project.
    let mut neighbour = thief.clone();
    reach(&mut neighbour).database = "app2".into();
    stage
        .refused(
            &second,
            &neighbour,
            "the project of another tenant is written",
        )
        .await?;
    // A tombstone gives the project up, and gets it back only while no other tenant has it.
    for state in [State::Deleting, State::Deleted] {
        stage
            .refused(
                &second,
                &thief,
                "the database of a tenant that is not deleted yet is written",
            )
            .await?;
        record.state = state;
        stage.wrote(&first, &record, AfterWrite::Keep).await?;
    }
    stage.wrote(&second, &thief, AfterWrite::Keep).await?;
    stage.wrote(&first, &record, AfterWrite::Keep).await?; // a tombstone may name the project
    record.state = State::Ready;
    stage
        .refused(
            &first,
            &record,
            "a deletion is undone although another tenant has the database now",
        )
        .await
}

pub(super) async fn doubt<R: Catalog>(stage: &Stage<R>) -> Outcome {
    let acme = tenant("acme");
    let (lease, mut record) = stage.granted(&acme, "one", LEASE).await?;
    record.state = State::Creating;
    let left = || async {
        let attempt = stage.found(&acme).await?.attempt;
        let attempt = attempt.ok_or("an attempt is gone")?;
        equal("the id of the attempt", &attempt.id.as_str(), &"attempt-1")?;
        Ok::<_, crate::model::error::BoxError>(attempt.doubt)
    };
    record.attempt = Some(Attempt::new("attempt-1", LEASE));
    stage.wrote(&lease, &record, AfterWrite::Keep).await?;
    let first = left().await?;
    holds(
        first <= LEASE && first > LEASE / 2,
        &format!("a doubt of {LEASE:?} has {first:?} left"),
    )?;
    until("a doubt never becomes shorter", || async {
        Ok(left().await? < first)
    })
    .await?;
    record.attempt = Some(Attempt::new("attempt-1", Duration::from_millis(50)));
    stage.wrote(&lease, &record, AfterWrite::Keep).await?;
    until("a doubt never ends", || async {
        Ok(left().await?.is_zero())
    })
    .await?;
    record.attempt = None;
    stage.wrote(&lease, &record, AfterWrite::Keep).await?;
    equal(
        "an attempt whose outcome is known",
        &stage.found(&acme).await?.attempt,
        &None,
    )
}
