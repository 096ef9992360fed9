//! Handlers of the organization paths: project transfer and consumption, and the list of regions.

use std::time::{Duration, SystemTime};

use axum::{
    Json,
    body::Bytes,
    extract::{Path, RawQuery, State},
    http::StatusCode,
};
use humantime::parse_rfc3339_weak;
use serde::Deserialize;
use serde_json::{Value, json};
use url::form_urlencoded;

use super::{Answer, Api, Refused, after, decode};
use super::{answers, bodies::check};
use crate::emulator::{
    names::{DEFAULT_REGION, REGIONS},
    world::project::Project,
};

/// Most projects in one transfer.
const MOST_TRANSFERRED: usize = 400;

#[derive(Deserialize)]
struct Transfer {
    destination_org_id: String,
    project_ids: Vec<String>,
}

/// Transfers all of the projects or none.
pub(super) async fn transfer(
    State(api): State<Api>,
    Path(source): Path<String>,
    body: Bytes,
) -> Answer {
    let asked: Transfer = decode(&body)?;
    let count = asked.project_ids.len();
    check(
        (1..=MOST_TRANSFERRED).contains(&count),
        "project_ids has 1 to 400 items",
    )?;
    let mut projects = api.world.projects();
    let is_its = |it: &Project| it.deleted_at.is_none() && it.org_id.as_ref() == Some(&source);
    let named = |id: &String| projects.iter().any(|it| it.id == *id && is_its(it));
    if !asked.project_ids.iter().all(named) {
        return Err(Refused::not_found("project"));
    }
    for project in projects.iter_mut() {
        if asked.project_ids.contains(&project.id) {
            project.org_id = Some(asked.destination_org_id.clone());
        }
    }
    Ok(Json(json!({})))
}

/// The query of a consumption request.
#[derive(Debug, Default)]
struct Query {
    org_id: Option<String>,
    project_ids: Vec<String>,
    metrics: Vec<String>,
    from: Option<SystemTime>,
    to: Option<SystemTime>,
    granularity: Option<Granularity>,
    cursor: Option<String>,
    limit: Option<usize>,
}

/// Answers `GET /regions`.
pub(super) async fn regions() -> Json<Value> {
    let regions = REGIONS.iter().map(|id| {
        json!({
            "region_id": id,
            "name": id,
            "default": *id == DEFAULT_REGION,
            "geo_lat": "",
            "geo_long": "",
        })
    });
    Json(json!({ "regions": regions.collect::<Vec<_>>() }))
}

/// The length of a timeframe, and of the history.
#[derive(Clone, Copy, Debug)]
struct Granularity {
    frame: Duration,
    history: Duration,
}

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

impl Granularity {
    fn named(name: &str) -> Option<Self> {
        let of = |frame, history| Self { frame, history };
        match name {
            "hourly" => Some(of(HOUR, 168 * HOUR)),
            "daily" => Some(of(DAY, 60 * DAY)),
            "monthly" => Some(of(30 * DAY, 366 * DAY)),
            _ => None,
        }
    }
}

impl Query {
    /// Parses a raw query. Lists may be repeated or joined by commas.
    fn read(raw: &str) -> Result<Self, Refused> {
        let mut query = Self::default();
        for (name, value) in form_urlencoded::parse(raw.as_bytes()) {
            let list = || {
                value
                    .split(',')
                    .filter(|it| !it.is_empty())
                    .map(str::to_owned)
            };
            let time = || {
                let read = parse_rfc3339_weak(&value);
                read.map_err(|_| Refused::invalid(&format!("{name} is not a date-time")))
            };
            match &*name {
                "org_id" => query.org_id = Some(value.clone().into_owned()),
                "project_ids" => query.project_ids.extend(list()),
                "metrics" => query.metrics.extend(list()),
                "from" => query.from = Some(time()?),
                "to" => query.to = Some(time()?),
                "granularity" => query.granularity = Granularity::named(&value),
                "cursor" => query.cursor = Some(value.clone().into_owned()),
                "limit" => query.limit = value.parse().ok(),
                _ => {}
            }
        }
        Ok(query)
    }
}

/// Returns the consumption of projects. All usage of a project so far counts in the present timeframe.
pub(super) async fn consumption(State(api): State<Api>, RawQuery(raw): RawQuery) -> Answer {
    let query = Query::read(&raw.unwrap_or_default())?;
    let missing = |what: &str| Refused::invalid(&format!("{what} (field required)"));
    let org_id = query.org_id.as_ref().ok_or_else(|| missing("org_id"))?;
    let from = query.from.ok_or_else(|| missing("from"))?;
    let to = query.to.ok_or_else(|| missing("to"))?;
    let granularity = query.granularity.ok_or_else(|| missing("granularity"))?;
    check(!query.metrics.is_empty(), "metrics (field required)")?;
    let limit = query.limit.unwrap_or(10);
    check((1..=100).contains(&limit), "limit is 1 to 100")?;
    let now = SystemTime::now();
    let age = now.duration_since(from).unwrap_or_default();
    if age > granularity.history + granularity.frame || to < from {
        let text = "the range is not valid for this granularity";
        return Err(Refused::new(StatusCode::NOT_ACCEPTABLE, text));
    }
    let ids = &query.project_ids;
    let wanted = |it: &Project| {
        let its = it.org_id.as_ref() == Some(org_id) && it.deleted_at.is_none();
        its && (ids.is_empty() || ids.contains(&it.id))
    };
    let newest_first: Vec<_> = api.world.projects().iter().rev().cloned().collect();
    let mut page = after(newest_first, query.cursor.as_deref(), |it| &it.id);
    page.retain(wanted);
    page.truncate(limit);
    let mut shown = Vec::new();
    for project in &page {
        for branch in &project.branches {
            branch.compute.read_meter().await;
        }
        let (start, end) = timeframe(now, granularity.frame);
        let present = (start <= to && from < end).then_some((start, end));
        shown.push(answers::consumption(project, present, &query.metrics));
    }
    let mut answer: Value = json!({ "projects": shown });
    if let Some(last) = page.last() {
        answer["pagination"] = json!({ "cursor": last.id });
    }
    Ok(Json(answer))
}

/// Returns the start and the end of the timeframe that contains `now`.
fn timeframe(now: SystemTime, frame: Duration) -> (SystemTime, SystemTime) {
    let since = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let into = Duration::from_secs(since.as_secs() % frame.as_secs());
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs()) - into;
    (start, start + frame)
}
