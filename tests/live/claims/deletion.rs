//! Finding projects, and their end.

use std::time::Duration;

use tenantry::BoxError;
use tokio::time::{Instant, sleep};

use crate::{
    api::Answer,
    findings::Findings,
    subject::{Subject, create},
};

/// Longest wait for a search to find a new project.
const LAG: Duration = Duration::from_secs(60);
const WAIT: Duration = Duration::from_millis(250);
const GONE: &str = r#"404 code "" "project not found""#;

/// A search finds a project as soon as its creation is answered; and a project can be deleted while it is created.
pub(crate) async fn search(subject: &Subject, findings: &mut Findings) -> Result<(), BoxError> {
    let api = &subject.api;
    let (name, created) = create(&subject.account, api).await?;
    let id = created.at("/project/id");
    let start = Instant::now();
    let mut searches = 1;
    let mut found = api.search(&name, false).await?;
    while !names(&found).contains(&name) && start.elapsed() < LAG {
        sleep(WAIT).await;
        searches += 1;
        found = api.search(&name, false).await?;
    }
    let seen = match searches {
        1 => "found by the first search".to_owned(),
        _ if names(&found).contains(&name) => format!("found after {:?}", start.elapsed()),
        _ => format!("not found in {LAG:?}"),
    };
    findings.same("a new project", "found by the first search", seen);
    let complete = found.body["unavailable_project_ids"].as_array();
    let complete = complete.is_none_or(Vec::is_empty);
    findings.holds(
        "all projects are searched",
        complete,
        found.at("/unavailable_project_ids"),
    );
    findings.same(
        "a cursor comes with the last page",
        &id,
        found.at("/pagination/cursor"),
    );

    let deleted = api.delete(&format!("/projects/{id}")).await?;
    findings.same("a deletion during the creation", 200, deleted.said());
    let part = &name[name.len() / 2..];
    let by_part = api
        .search(&subject.name[..subject.name.len() - 1], false)
        .await?;
    let has = names(&by_part).contains(&subject.name);
    findings.holds("a part of a name finds it", has, "it is missing");
    let by_part = names(&api.search(part, false).await?);
    findings.holds(
        "a deleted project is found no more",
        !by_part.contains(&name),
        "it is found",
    );
    let by_id = names(&api.search(&subject.project, false).await?);
    findings.holds(
        "its id finds a project",
        by_id.contains(&subject.name),
        "it is missing",
    );
    Ok(())
}

fn names(found: &Answer) -> Vec<String> {
    let all = found.body["projects"].as_array().into_iter().flatten();
    all.filter_map(|it| it["name"].as_str().map(str::to_owned))
        .collect()
}

/// A deleted project is gone for every caller, and can be recovered.
pub(crate) async fn delete(subject: &Subject, findings: &mut Findings) -> Result<(), BoxError> {
    let (api, path) = (&subject.api, subject.path(""));
    let deleted = api.delete(&path).await?;
    findings.same("a deletion", 200, deleted.said());
    findings.same("its answer", &subject.project, deleted.at("/project/id"));
    findings.same("a look at it", GONE, api.get(&path).await?.said());
    findings.same("another deletion", GONE, api.delete(&path).await?.said());
    let login = &subject.login;
    let told = format!(
        "ERROR XX000 password authentication failed for user '{}'",
        login.role
    );
    for host in [&login.pooled, &login.direct] {
        findings.same("a login", &told, subject.told(host, login).await?);
    }
    let listed = api.search(&subject.project, true).await?;
    for field in ["deleted_at", "recoverable_until"] {
        let there = listed.body["projects"][0][field].is_string();
        findings.holds(
            &format!("recoverable projects have {field}"),
            there,
            listed.at("/projects/0"),
        );
    }
    Ok(())
}
