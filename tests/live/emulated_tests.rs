//! The check and the benchmark on an emulator in Neon's place: what they find, and that nothing is left.

use std::{process::ExitCode, sync::Arc, time::Duration};

use futures_util::{
    StreamExt,
    future::{BoxFuture, ready},
    stream,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use tenantry::{BoxError, emulator::ApiFault, neon::CreateProject};
use tokio::time::Instant;

use crate::{
    cold_resume::{
        account::{Account, Budget},
        neon_service::NeonService,
    },
    emulated_neon::{EmulatedNeon, LONG, eventually},
};

struct Test {
    name: &'static str,
    run: fn() -> BoxFuture<'static, ()>,
}

macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        &[$(Test { name: stringify!($name), run: || Box::pin($name()) }),*]
    };
}

static TESTS: &[Test] = tests![
    the_emulator_does_what_it_claims,
    each_false_claim_is_a_line_and_projects_are_deleted,
    a_claim_that_cannot_be_asked_is_a_line,
    a_check_that_is_stopped_deletes_first,
    a_creation_under_way_when_the_check_is_stopped_is_deleted_too,
    a_deletion_that_fails_at_first_is_tried_again,
    a_project_left_by_a_killed_check_is_reported,
    a_rejected_key_creates_nothing,
    a_check_that_takes_too_long_deletes_and_ends,
    a_check_whose_output_is_closed_deletes_its_projects,
    work_that_fails_or_panics_leaves_nothing,
    a_creation_without_an_answer_is_found_and_deleted,
    a_project_that_cannot_be_deleted_is_reported_by_its_id,
    the_benchmark_measures_every_client_and_leaves_nothing,
    a_benchmark_that_is_stopped_deletes_first,
    without_a_key_one_line_says_so,
];

/// Tests that run beside each other.
const THREADS: usize = 2;

/// Runs the tests that have one of the words in their name, as a test harness of the standard library does.
pub(crate) async fn run(words: impl Iterator<Item = String>) -> ExitCode {
    let (mut filters, mut list, mut threads) = (Vec::new(), false, THREADS);
    let mut words = words.filter(|word| word != "--rehearse");
    while let Some(word) = words.next() {
        match word.as_str() {
            "--list" => list = true,
            "--test-threads" => {
                threads = words
                    .next()
                    .and_then(|it| it.parse().ok())
                    .unwrap_or(threads);
            }
            "--skip" | "--color" | "--format" | "-Z" => drop(words.next()),
            word if word.starts_with('-') => {}
            word => filters.push(word.to_owned()),
        }
    }
    let wanted =
        |it: &&Test| filters.is_empty() || filters.iter().any(|word| it.name.contains(word));
    let wanted = TESTS.iter().filter(wanted);
    if list {
        wanted.for_each(|it| println!("{}: test", it.name));
        return ExitCode::SUCCESS;
    }
    let running = stream::iter(wanted).map(Test::run).buffered(threads.max(1));
    let failed = running.filter(|passed| ready(!passed)).count().await;
    if failed > 0 {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

impl Test {
    /// Returns whether it passed.
    async fn run(&self) -> bool {
        let start = Instant::now();
        let passed = tokio::spawn((self.run)()).await.is_ok();
        let result = if passed { "ok" } else { "FAILED" };
        println!("test {} ... {result} ({:.1?})", self.name, start.elapsed());
        passed
    }
}

async fn the_emulator_does_what_it_claims() {
    let neon = EmulatedNeon::new().await;
    let ended = neon.check(&[]).end().await;
    assert_eq!(ended.lines("difference: "), [""; 0], "{ended:#?}");
    assert!(ended.status.success(), "{ended:#?}");
    assert!(
        ended
            .lines("live: ")
            .last()
            .unwrap()
            .ends_with(" 0 differences")
    );
    let said = ended.lines("- ").join("\n");
    assert!(
        said.contains("2 projects") && said.contains("compute-hours"),
        "{said}"
    );
    assert_eq!(ended.lines("created  project ").len(), 2);
    neon.assert_clean();
}

async fn each_false_claim_is_a_line_and_projects_are_deleted() {
    fn alter(request: &str, answer: &mut Value) {
        if request.ends_with("/start") && answer["message"].is_string() {
            answer["message"] = json!("project is busy,\ntry again");
        }
        if request == "POST /api/v2/projects" && answer["branch"].is_object() {
            answer["branch"]["name"] = json!("production");
            answer["project"]
                .as_object_mut()
                .unwrap()
                .remove("proxy_host");
        }
    }
    let neon = EmulatedNeon::with(|emulator| emulator.live_codes(true), alter).await;
    neon.emulator.set_search_lag(Duration::from_secs(2));
    let ended = neon.check(&[]).end().await;
    assert_eq!(ended.status.code(), Some(1), "{ended:#?}");
    let lines = ended.lines("difference: ");
    for expected in [
        r#"difference: locks: a start during the creation | expected: 423 code "" "project already has running conflicting operations, scheduling of new ones is prohibited" | seen: 423 code "" "project is busy,\ntry again""#,
        "difference: creation: /branch/name | expected: main | seen: production",
        "difference: creation: type of /project/proxy_host | expected: string | seen: nothing",
        "difference: search: a new project | expected: found by the first search | seen: found after ",
        "difference: logins: a wrong password, pooled | expected: ERROR XX000 password authentication failed for user 'neondb_owner' | seen: ERROR 28P01 password",
        "difference: logins: a wrong password, direct | expected: ERROR XX000 ",
        "difference: a disabled endpoint: a login | expected: ERROR XX000 The endpoint has been disabled. Enable it using the API and retry. | seen: ERROR 28000 ",
    ] {
        let found = lines.iter().any(|line| line.starts_with(expected));
        assert!(found, "no {expected:?} in {lines:#?}");
    }
    assert!(
        !lines.iter().any(|line| line.contains("npg_")),
        "{lines:#?}"
    );
    neon.assert_clean();
}

async fn a_claim_that_cannot_be_asked_is_a_line() {
    let neon = EmulatedNeon::new().await;
    let ended = neon.check(&[("TENANTRY_LIVE_PROJECTS", "1")]).end().await;
    let lines = ended.lines("difference: ");
    let expected = "difference: search: it can be asked | expected: an answer | seen: the budget of 1 project is used up";
    assert_eq!(lines, [expected], "{ended:#?}");
    assert_eq!(ended.status.code(), Some(1));
    neon.assert_clean();
}

async fn a_check_that_is_stopped_deletes_first() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let neon = EmulatedNeon::new().await;
        let mut check = neon.check(&[]);
        check.until("created  project ").await;
        check.signal(signal);
        let ended = check.end().await;
        assert_eq!(ended.status.code(), Some(1), "{ended:#?}");
        assert_eq!(ended.lines("stopped by ").len(), 1, "{ended:#?}");
        assert!(!ended.lines("deleted  project ").is_empty(), "{ended:#?}");
        neon.assert_clean();
    }
}

async fn a_creation_under_way_when_the_check_is_stopped_is_deleted_too() {
    let neon = EmulatedNeon::new().await;
    let slow = ApiFault::Slow { milliseconds: 1500 };
    neon.emulator.fail_api("POST /projects", slow, 1);
    let check = neon.check(&[]);
    eventually(|| !neon.emulator.witnesses().is_empty()).await;
    check.signal(Signal::INT);
    let ended = check.end().await;
    assert_eq!(ended.lines("deleted  project ").len(), 1, "{ended:#?}");
    neon.assert_clean();
}

async fn a_deletion_that_fails_at_first_is_tried_again() {
    let neon = EmulatedNeon::new().await;
    let faults = [
        ApiFault::Status(500),
        ApiFault::Html(502),
        ApiFault::AnswerLost,
    ];
    for fault in faults {
        neon.emulator.fail_api("DELETE /projects", fault, 1);
    }
    with_project(&neon, || async { Ok(()) }).await.unwrap();
    neon.assert_clean();
}

async fn a_project_left_by_a_killed_check_is_reported() {
    let neon = EmulatedNeon::new().await;
    let mut check = neon.check(&[]);
    check.until("created  project ").await;
    check.signal(Signal::KILL);
    check.end().await;
    let id = neon.emulator.witnesses().remove(0).project_id;
    let next = neon
        .check(&[("TENANTRY_LIVE_MINUTES", "0.001")])
        .end()
        .await;
    let found = next.lines(&format!("found    project {id} "));
    assert_eq!(found.len(), 1, "{next:#?}");
}

async fn a_rejected_key_creates_nothing() {
    let neon = EmulatedNeon::new().await;
    let ended = neon.check(&[("NEON_API_KEY", "napi_wrong")]).end().await;
    let last = ended.lines.last().unwrap();
    assert!(
        last.contains("401") && last.contains("check the api key"),
        "{ended:#?}"
    );
    assert_eq!(neon.emulator.requests("POST /projects"), 0);
}

async fn a_check_that_takes_too_long_deletes_and_ends() {
    let neon = EmulatedNeon::new().await;
    let ended = neon.check(&[("TENANTRY_LIVE_MINUTES", "0.02")]).end().await;
    assert_eq!(ended.status.code(), Some(1), "{ended:#?}");
    assert_eq!(ended.lines("stopped: ").len(), 1, "{ended:#?}");
    neon.assert_clean();
}

async fn a_check_whose_output_is_closed_deletes_its_projects() {
    let neon = EmulatedNeon::new().await;
    let mut check = neon.check(&[]);
    check.until("created  project ").await;
    let status = check.close_output().await;
    assert!(status.code().is_some(), "{status}");
    neon.assert_clean();
}

/// Runs `work` with an account that has a project.
async fn with_project<Fut>(neon: &EmulatedNeon, work: impl FnOnce() -> Fut) -> Result<(), BoxError>
where
    Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
{
    let budget = Budget {
        projects: 1,
        time: LONG,
    };
    let account = Account::new(
        NeonService::of(&neon.emulator).unwrap(),
        "rehearsal",
        budget,
    );
    let (creator, work) = (Arc::clone(&account), work());
    let all = async move {
        let neon = creator.service.neon.clone();
        let creation = creator.create(|name| async move {
            let created = neon.create_project(&CreateProject::new(name)).await?;
            Ok((created.project.id, ()))
        });
        creation.await?;
        work.await
    };
    account.run(all).await
}

async fn work_that_fails_or_panics_leaves_nothing() {
    let neon = EmulatedNeon::new().await;
    let failed = with_project(&neon, || async { Err("no luck".into()) }).await;
    assert_eq!(failed.unwrap_err().to_string(), "no luck");
    let panicked = with_project(&neon, || async { panic!("on purpose, in a rehearsal") }).await;
    assert!(panicked.unwrap_err().to_string().contains("on purpose"));
    neon.assert_clean();
}

async fn a_creation_without_an_answer_is_found_and_deleted() {
    let neon = EmulatedNeon::new().await;
    neon.emulator.set_search_lag(Duration::from_secs(1));
    neon.emulator
        .fail_api("POST /projects", ApiFault::AnswerLost, 1);
    let lost = with_project(&neon, || async { Ok(()) }).await;
    lost.unwrap_err();
    neon.assert_clean();
}

async fn a_project_that_cannot_be_deleted_is_reported_by_its_id() {
    let neon = EmulatedNeon::new().await;
    neon.emulator
        .fail_api("DELETE /projects", ApiFault::Status(403), 9);
    let kept = with_project(&neon, || async { Ok(()) }).await;
    let id = neon.emulator.witnesses().remove(0).project_id;
    let said = kept.unwrap_err().to_string();
    assert!(
        said.contains(&format!("project {id} is NOT deleted")),
        "{said}"
    );
}

async fn the_benchmark_measures_every_client_and_leaves_nothing() {
    let quick = Duration::from_millis(20);
    let neon = EmulatedNeon::with(|emulator| emulator.operation_time(quick), |_, _| {}).await;
    let ended = neon.benchmark().end().await;
    assert!(ended.status.success(), "{ended:#?}");
    for who in ["floor", "tenantry", "deadpool-postgres", "sqlx"] {
        for host in ["pooled", "direct"] {
            let lines = ended.lines(&format!("{host}, direct, {who} "));
            let both = if who == "floor" { 1 } else { 2 }; // alone, and in a herd
            assert_eq!(lines.len(), both, "{ended:#?}");
            let errors = lines
                .iter()
                .filter_map(|line| line.split_whitespace().last());
            assert!(errors.into_iter().all(|count| count == "0"), "{lines:#?}");
        }
    }
    let figures = std::fs::read(neon.figures().join("cold_resume_neon.json")).unwrap();
    let figures: Value = serde_json::from_slice(&figures).unwrap();
    assert_eq!(figures["resume_samples"], 1.0, "{figures}");
    assert!(
        figures["herd_1000_p99_ms_direct_host"].is_f64(),
        "{figures}"
    );
    let svg = std::fs::read_to_string(neon.figures().join("cold_resume_neon.svg")).unwrap();
    assert!(
        svg.contains("pooled host")
            && svg.contains("direct host")
            && !svg.contains("other tenants")
    );
    neon.assert_clean();
    assert!(
        neon.emulator
            .requests("POST /projects/{id}/endpoints/{id}/suspend")
            >= 16
    );
}

async fn a_benchmark_that_is_stopped_deletes_first() {
    for signal in [Signal::INT, Signal::TERM] {
        let neon = EmulatedNeon::new().await;
        let mut benchmark = neon.benchmark();
        benchmark.until("measuring in ").await;
        let wakes = || {
            neon.emulator
                .witnesses()
                .iter()
                .map(|it| it.wakes.len())
                .sum::<usize>()
        };
        eventually(|| wakes() > 2).await; // in the midst of its first round
        benchmark.signal(signal);
        let ended = benchmark.end().await;
        assert_eq!(ended.status.code(), Some(1), "{ended:#?}");
        assert_eq!(ended.lines("deleted  project ").len(), 1, "{ended:#?}");
        assert_eq!(ended.lines("stopped by ").len(), 1, "{ended:#?}");
        neon.assert_clean();
    }
}

async fn without_a_key_one_line_says_so() {
    let neon = EmulatedNeon::new().await;
    let ended = neon.benchmark_without_key().end().await;
    assert_eq!(ended.status.code(), Some(1), "{ended:#?}");
    assert_eq!(ended.lines.len(), 1, "{ended:#?}");
    assert!(ended.lines[0].contains("NEON_API_KEY"), "{ended:#?}");
    neon.assert_clean();
}
