//! The telemetry of a router, held against the manual's page, which is a contract.

mod calls;
mod trace_recorder;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use tenantry::{ErrorKind, TenantRouter};
use tokio::time::sleep;
use tracing::Instrument;

use calls::calls;
use trace_recorder::{Line, TraceRecorder};

use crate::support::{
    Backend, Failure, FakeCatalog, FakeControlPlane, Gate, Reply, ScriptedApi, Step,
};

const PAGE: &str = include_str!("../../src/manual/telemetry.md");
const SECOND: Duration = Duration::from_secs(1);

/// The cells of each row of the page's table that begins with a cell of that name, without the backticks of single
/// words.
fn rows(heading: &str) -> Vec<Vec<String>> {
    let table = PAGE.split(&format!("\n| {heading} |")).nth(1);
    let table = table.unwrap_or_else(|| panic!("no table of {heading}"));
    let rows = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let cells = |row: &str| {
        let cells = row.trim_matches('|').split('|');
        cells
            .map(|cell| cell.trim().trim_matches('`').to_owned())
            .collect()
    };
    rows.map(cells).collect()
}

/// The words in backticks.
fn words(cell: &str) -> BTreeSet<String> {
    let cell = format!("`{}`", cell.trim_matches('`'));
    let words = cell.split('`').skip(1).step_by(2);
    words
        .filter(|it| !it.is_empty())
        .map(str::to_owned)
        .collect()
}

/// A recorder for this thread, on which the whole of a test runs.
fn recorder() -> (PrometheusRecorder, PrometheusHandle) {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    (recorder, handle)
}

/// The value of a series as Prometheus reads it.
fn value(page: &str, series: &str) -> Option<f64> {
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    let labels: Vec<_> = labels
        .trim_end_matches('}')
        .split(',')
        .filter(|it| !it.is_empty())
        .collect();
    page.lines().find_map(|line| {
        let (key, value) = line.rsplit_once(' ')?;
        let is_it = key.split('{').next() == Some(name) && labels.iter().all(|it| key.contains(it));
        is_it.then(|| value.parse().ok()).flatten()
    })
}

/// Returns whether the line tells a value of that metric.
fn is_metric(line: &str, name: &str) -> bool {
    let key = line.split(['{', ' ']).next().unwrap_or_default();
    let key = key
        .strip_suffix("_sum")
        .or(key.strip_suffix("_count").filter(|it| *it == name))
        .unwrap_or(key);
    key == name
}

/// The labels of a line, without those of every metric and of summaries.
fn label_pairs(line: &str) -> BTreeMap<String, String> {
    let labels = line.split(['{', '}']).nth(1).unwrap_or_default();
    let label_pairs = labels.split(',').filter_map(|it| it.split_once('='));
    let label_pairs =
        label_pairs.map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned()));
    let common = ["db_client_connection_pool_name", "quantile"];
    label_pairs
        .filter(|(name, _)| !common.contains(&name.as_str()))
        .collect()
}

/// Holds the labels of each metric, and their values where there are so many, against the manual's page.
fn check_labels(page: &str) {
    for row in rows("metric") {
        let name = row[0].replace('.', "_");
        let labels: BTreeSet<_> = words(&row[2])
            .iter()
            .map(|it| it.replace('.', "_"))
            .collect();
        let values = row[2]
            .split(['(', ')', ','])
            .map(str::trim)
            .collect::<BTreeSet<_>>();
        for line in page.lines().filter(|line| is_metric(line, &name)) {
            let labels_of_line = label_pairs(line);
            assert_eq!(
                labels_of_line.keys().cloned().collect::<BTreeSet<_>>(),
                labels,
                "{line}"
            );
            let fixed = labels_of_line.values().filter(|_| row[2].contains('('));
            for value in fixed {
                assert!(
                    values.contains(&**value),
                    "{value} is not on the page: {line}"
                );
            }
        }
    }
}

/// Returns the name and kind of each metric of Neon's API, or of all others, as the page has them and Prometheus writes
/// them.
fn documented(of_api: bool) -> BTreeSet<String> {
    let rows = rows("metric").into_iter();
    rows.filter(|row| row[0].starts_with("tenantry.api") == of_api)
        .map(|row| {
            // Without buckets, a histogram is a summary there.
            let kind = row[1].replace("histogram", "summary");
            format!("{} {kind}", row[0].replace('.', "_"))
        })
        .collect()
}

fn exposed_metrics(page: &str) -> BTreeSet<String> {
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types.map(str::to_owned).collect()
}

const DISABLED: Gate = Gate::Fail(Failure::Error {
    code: "XX000",
    text: "The endpoint has been disabled. Enable it using Neon API and retry.",
});

/// The values of series after the calls of the test below.
const EXPECTED: &[(&str, f64)] = &[
    (r#"tenantry_gets{path="warm"}"#, 2.0),
    (r#"tenantry_gets{path="cold"}"#, 1.0),
    (r#"tenantry_gets{path="provisioned"}"#, 1.0),
    (r#"tenantry_gets{path="reopened"}"#, 3.0),
    (r#"tenantry_gets{path="failed"}"#, 2.0),
    (r#"tenantry_errors{error_type="disabled"}"#, 1.0),
    (r#"tenantry_errors{error_type="timeout"}"#, 1.0),
    (r#"tenantry_errors{error_type="invalid_tenant"}"#, 1.0),
    ("db_client_connection_timeouts", 1.0),
    (r#"tenantry_refusals{error_type="disabled"}"#, 1.0),
    (r#"tenantry_wakes_started{reason="request"}"#, 4.0),
    (r#"tenantry_wakes_succeeded{reason="request"}"#, 2.0),
    ("tenantry_databases_created", 3.0),
    (
        r#"db_client_connection_count{db_client_connection_state="idle"}"#,
        5.0,
    ),
    (
        r#"db_client_connection_count{db_client_connection_state="used"}"#,
        0.0,
    ),
    ("db_client_connection_max", 500.0),
    ("db_client_connection_create_time_count", 5.0),
    ("db_client_connection_wait_time_count", 5.0),
    (
        r#"tenantry_stage_duration_count{stage="wake",outcome="ok"}"#,
        2.0,
    ),
    (
        r#"tenantry_stage_duration_count{stage="wake",outcome="error"}"#,
        2.0,
    ),
    (
        r#"tenantry_stage_duration_count{stage="provision",outcome="ok"}"#,
        3.0,
    ),
];

#[tokio::test(start_paused = true)]
async fn exactly_the_metrics_on_the_page_are_exposed() {
    let (recorder, prometheus) = recorder();
    let _mine = metrics::set_default_local_recorder(&recorder);
    let (backend, catalog) = (Backend::default(), FakeCatalog::new());
    catalog.publish("acme", "acme").await;
    let provisioner = FakeControlPlane::provisioner(&backend, catalog.clone());
    let builder = backend.configure(TenantRouter::provisioning(provisioner));
    let router = builder.name("blue").tenants_in_metrics(1).build().unwrap();
    for tenant in ["acme", "acme", "new"] {
        drop(router.get(tenant).await.unwrap());
    }
    let held = [(); 4].map(|()| router.get("acme"));
    drop(futures_util::future::join_all(held).await);
    backend.set(Step::Login, DISABLED);
    let off = router.get("off").await.unwrap_err();
    assert_eq!(off.kind(), ErrorKind::Disabled);
    backend.set(Step::Login, Gate::Stuck);
    let none = router.direct("").await.unwrap_err();
    assert_eq!(none.kind(), ErrorKind::InvalidTenant);
    let late = router.get("late").await.unwrap_err();
    assert!(matches!(late.kind(), ErrorKind::Timeout(_)));
    sleep(6 * SECOND).await; // a sweep, and a record

    let page = prometheus.render();
    assert_eq!(exposed_metrics(&page), documented(false));
    check_labels(&page);
    let labels = r#"db_client_connection_pool_name="blue""#;
    for line in page
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
    {
        let is_shared = line.starts_with("tenantry_catalog_duration");
        assert_eq!(line.contains(labels), !is_shared, "{line}");
        let names_a_tenant = line.contains("tenant=") || line.contains("acme");
        assert!(
            !names_a_tenant || line.starts_with("tenantry_tenant_"),
            "{line}"
        );
    }
    for (series, expected) in EXPECTED {
        assert_eq!(value(&page, series), Some(*expected), "{series}");
    }
    let shown = |who| value(&page, &format!(r#"tenantry_tenant_gets{{tenant="{who}"}}"#)).unwrap();
    assert!(shown("acme") > 2.0 && shown("_other") > 0.5, "{page}");
}

#[tokio::test]
async fn the_metrics_of_neons_api_are_those_on_the_page() {
    let (recorder, prometheus) = recorder();
    let _mine = metrics::set_default_local_recorder(&recorder);
    let project = serde_json::json!({ "project": { "id": "p-1" } });
    let replies = [
        Reply::Json(503, serde_json::json!({})),
        Reply::Json(200, project),
    ];
    let api = ScriptedApi::new(replies).await;
    let neon = api.client().build().unwrap();
    neon.get_project("p-1").await.unwrap();
    let page = prometheus.render();
    assert_eq!(exposed_metrics(&page), documented(true));
    for status in ["503", "200"] {
        let series = format!(
            r#"tenantry_api_duration_count{{operation="getProject",http_response_status_code="{status}"}}"#
        );
        assert_eq!(value(&page, &series), Some(1.0), "{page}");
    }
}

fn get_span(lines: &[(String, Line)]) -> BTreeMap<&str, &str> {
    let mut gets = lines.iter().filter(|(_, it)| it.name == "get");
    let (parent, get) = gets.next().expect("a span");
    assert!(gets.next().is_none(), "one span for one call");
    assert_eq!(parent, "app");
    get.fields
        .iter()
        .map(|(name, value)| (&**name, &**value))
        .collect()
}

/// One call, inside the span of an application.
async fn get(router: &TenantRouter, tenant: &str) -> Result<(), tenantry::Error> {
    let call = async { router.get(tenant).await.map(drop) };
    call.instrument(tracing::info_span!("app")).await
}

#[tokio::test(start_paused = true)]
async fn a_call_has_one_span_and_its_stages_are_events() {
    let (seen, _watching) = TraceRecorder::watch();
    let backend = Backend::default();
    backend.set(Step::Login, Gate::Slow(SECOND));
    let router = FakeControlPlane::router(&backend).build().unwrap();
    get(&router, "acme").await.unwrap();
    sleep(SECOND).await;
    let lines = seen.take();
    let expected = [
        ("outcome", "provisioned"),
        ("reason", "request"),
        ("tenant", "acme"),
    ];
    assert_eq!(get_span(&lines), BTreeMap::from(expected));
    let events = |span: &str| {
        let events = lines
            .iter()
            .filter(|(it, line)| it == span && line.span.is_none());
        events
            .map(|(_, line)| line.name.as_str())
            .collect::<Vec<_>>()
    };
    assert_eq!(events("get"), ["stage", "stage"]);
    assert_eq!(events("flight"), ["lookup", "provisioned"]);
    assert_eq!(events("open"), ["wake", "connect", "awake"]);
    let of_stage: Vec<_> = lines.iter().filter(|(it, _)| it == "get").collect();
    assert_eq!(of_stage[0].1.fields["stage"], "provision");
    assert_eq!(of_stage[1].1.fields["stage"], "wake");
    assert_eq!(of_stage[1].1.fields["elapsed"], "1s");
    for (parent, line) in &lines {
        let is_root = ["flight", "open"].contains(&&*line.name);
        assert!(
            !is_root || parent.is_empty(),
            "{line:?} must not outlive its call"
        );
    }

    get(&router, "acme").await.unwrap();
    let expected = [
        ("outcome", "warm"),
        ("reason", "request"),
        ("tenant", "acme"),
    ];
    assert_eq!(get_span(&seen.take()), BTreeMap::from(expected));

    backend.suspend();
    sleep(SECOND).await;
    seen.take();
    get(&router, "acme").await.unwrap();
    assert_eq!(get_span(&seen.take())["outcome"], "cold");

    backend.set(Step::Login, DISABLED);
    get(&router, "off").await.unwrap_err();
    let lines = seen.take();
    let get_span = get_span(&lines);
    assert_eq!(
        (get_span["outcome"], get_span["stage"]),
        ("disabled", "wake")
    );
    assert!(
        lines
            .iter()
            .any(|(_, it)| it.name == "refused" && it.fields["code"] == "disabled")
    );
}

#[test]
fn spans_and_events_are_those_on_the_page_with_the_same_fields() {
    let page: BTreeMap<(String, String), BTreeSet<String>> =
        [("span", 0), ("event", 0), ("level", 1)]
            .into_iter()
            .flat_map(|(heading, name)| {
                rows(heading).into_iter().map(move |row| {
                    let level = match heading {
                        "span" => "debug_span".to_owned(),
                        "event" => "debug".to_owned(),
                        _ => row[0].to_lowercase(),
                    };
                    ((level, row[name].clone()), words(&row[name + 1]))
                })
            })
            .collect();
    let mut code = BTreeMap::<_, BTreeSet<String>>::new();
    for (level, name, fields) in calls() {
        if name.starts_with("emulator: ") {
            continue; // of a tool for tests
        }
        // Long lines say what to do as well; the page has their beginning.
        let begins = page
            .keys()
            .filter(|(at, its)| *at == level && name.starts_with(&**its));
        let begins = begins.max_by_key(|(_, its)| its.len());
        let name = begins.map_or(name, |(_, its)| its.clone());
        code.entry((level, name)).or_default().extend(fields);
    }
    let differ = code
        .iter()
        .filter(|(call, fields)| page.get(call) != Some(fields));
    assert_eq!(
        differ.collect::<Vec<_>>(),
        [],
        "are not on the page like that"
    );
    let gone = page.keys().filter(|row| !code.contains_key(row));
    assert_eq!(
        gone.collect::<Vec<_>>(),
        [] as [&(String, String); 0],
        "are on the page only"
    );
}
