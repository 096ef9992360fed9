//! Finding projects, and their end.

use std::time::Duration;

use tenantry::BoxError;
use tokio::time::{Instant, sleep};

use crate::{
    api::Answer,
    findings::Findings,
    test_project::{TestProject, create_project},
};

/// Longest wait for a search to find a new project.
const LAG: Duration = Duration::from_secs(60);
const WAIT: Duration = Duration::from_millis(250);
const GONE: &str = r#"404 code "" "project not found""#;

/// A search finds a project as soon as its creation is answered; and a project can be deleted while it is created.
pub(crate) async fn search(
    test_project: &TestProject,
    findings: &mut Findings,
) -> Result<(), BoxError> {
    let api = &test_project.api;
    let (name, created) = create_project(&test_project.account, api).await?;
    let id = created.value_at("/project/id");
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
    findings.expect_eq("a new project", "found by the first search", seen);
    let complete = found.body["unavailable_project_ids"].as_array();
    let complete = complete.is_none_or(Vec::is_empty);
    findings.expect(
        "all projects are searched",
        complete,
        found.value_at("/unavailable_project_ids"),
    );
    findings.expect_eq(
        "a cursor comes with the last page",
        &id,
        found.value_at("/pagination/cursor"),
    );

    let deleted = api.delete(&format!("/projects/{id}")).await?;
    findings.expect_eq("a deletion during the creation", 200, deleted.summary());
    let part = &name[name.len() / 2..];
    let by_part = api
        .search(&test_project.name[..test_project.name.len() - 1], false)
        .await?;
    let has = names(&by_part).contains(&test_project.name);
    findings.expect("a part of a name finds it", has, "it is missing");
    let by_part = names(&api.search(part, false).await?);
    findings.expect(
        "a deleted project is found no more",
        !by_part.contains(&name),
        "it is found",
    );
    let by_id = names(&api.search(&test_project.project, false).await?);
    findings.expect(
        "its id finds a project",
        by_id.contains(&test_project.name),
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
pub(crate) async fn delete(
    test_project: &TestProject,
    findings: &mut Findings,
) -> Result<(), BoxError> {
    let (api, path) = (&test_project.api, test_project.path(""));
    let deleted = api.delete(&path).await?;
    findings.expect_eq("a deletion", 200, deleted.summary());
    findings.expect_eq(
        "its answer",
        &test_project.project,
        deleted.value_at("/project/id"),
    );
    findings.expect_eq("a look at it", GONE, api.get(&path).await?.summary());
    findings.expect_eq("another deletion", GONE, api.delete(&path).await?.summary());
    let login = &test_project.login;
    let told = format!(
        "ERROR XX000 password authentication failed for user '{}'",
        login.role
    );
    for host in [&login.pooled, &login.direct] {
        findings.expect_eq(
            "a login",
            &told,
            test_project.login_answer(host, login).await?,
        );
    }
    let listed = api.search(&test_project.project, true).await?;
    for field in ["deleted_at", "recoverable_until"] {
        let there = listed.body["projects"][0][field].is_string();
        findings.expect(
            &format!("recoverable projects have {field}"),
            there,
            listed.value_at("/projects/0"),
        );
    }
    Ok(())
}
