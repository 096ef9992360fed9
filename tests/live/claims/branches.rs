//! Branches, what is written on them, and their passwords.

use serde_json::json;
use tenantry::BoxError;

use crate::{
    findings::Findings,
    test_project::{ANNOTATION, Login, TestProject},
};

/// The annotation of the project's creation is read back, from the branch and from the list.
pub(crate) async fn annotations(
    test_project: &TestProject,
    findings: &mut Findings,
) -> Result<(), BoxError> {
    let (name, value) = ANNOTATION;
    let path = test_project.path(&format!("/branches/{}", test_project.branch));
    let branch = test_project.api.get(&path).await?;
    findings.expect_eq(
        "of a branch",
        value,
        branch.value_at(&format!("/annotation/value/{name}")),
    );
    findings.expect_eq(
        "their object",
        "console/branch",
        branch.value_at("/annotation/object/type"),
    );
    findings.expect_eq(
        "its id",
        &test_project.branch,
        branch.value_at("/annotation/object/id"),
    );
    let listed = test_project
        .api
        .get(&test_project.path("/branches"))
        .await?;
    let place = format!("/annotations/{}/value/{name}", test_project.branch);
    findings.expect_eq("of all branches", value, listed.value_at(&place));
    Ok(())
}

/// A branch comes with its parent's roles; its name is unique; its password is its own from the first reset on.
pub(crate) async fn create(
    test_project: &TestProject,
    findings: &mut Findings,
) -> Result<(), BoxError> {
    let api = &test_project.api;
    let order = json!({
        "branch": { "name": "feature" }, "endpoints": [{ "type": "read_write" }], "annotation_value": { "of": "feature" },
    });
    let all = test_project.path("/branches");
    let created = api.post(&all, Some(order.clone())).await?;
    findings.expect_eq("a creation", 201, created.status);
    findings.expect_eq(
        "its operations",
        "[create_branch, start_compute]",
        created.actions(),
    );
    findings.expect_eq(
        "its parent",
        &test_project.branch,
        created.value_at("/branch/parent_id"),
    );
    test_project.wait_until_idle().await?;
    let login = Login::of(&created);
    let inherited = login.password == test_project.login.password;
    findings.expect("a role has its parent's password", inherited, "another one");
    let again = api.post(&all, Some(order)).await?;
    let taken = r#"409 code "BRANCH_ALREADY_EXISTS" "branch already exists""#;
    findings.expect_eq("a second branch of that name", taken, again.summary());

    let branch = created.value_at("/branch/id");
    passwords(test_project, findings, &branch, &login).await?;
    let path = test_project.path(&format!("/branches/{branch}"));
    let deleted = api.delete(&path).await?;
    findings.expect_eq("a deletion", 200, deleted.summary());
    findings.expect_eq(
        "its operations",
        "[suspend_compute, delete_timeline]",
        deleted.actions(),
    );
    test_project.wait_until_idle().await?;
    findings.expect_eq("another deletion", 204, api.delete(&path).await?.summary());
    let default = test_project.path(&format!("/branches/{}", test_project.branch));
    findings.expect_eq(
        "a deletion of the default branch",
        422,
        api.delete(&default).await?.status,
    );
    Ok(())
}

/// A password is revealed, and reset for one branch only.
async fn passwords(
    test_project: &TestProject,
    findings: &mut Findings,
    branch: &str,
    login: &Login,
) -> Result<(), BoxError> {
    let api = &test_project.api;
    let reveal = test_project.role_path(branch, "reveal_password");
    let revealed = api.get(&reveal).await?.value_at("/password");
    findings.expect(
        "a password that is revealed",
        revealed == login.password,
        "another one",
    );
    let reset = api
        .post(&test_project.role_path(branch, "reset_password"), None)
        .await?;
    let password = reset.value_at("/role/password");
    findings.hide(&password);
    findings.expect_eq("a reset", 200, reset.summary());
    findings.expect_eq("its operations", "[apply_config]", reset.actions());
    findings.expect(
        "a reset gives another password",
        password != login.password,
        "the same",
    );
    test_project.wait_until_idle().await?;
    let revealed = api.get(&reveal).await?.value_at("/password");
    findings.expect(
        "the new one is revealed",
        revealed == password,
        "another one",
    );
    let new = Login {
        password,
        ..login.clone()
    };
    for host in [&login.pooled, &login.direct] {
        findings.expect_eq(
            "a login with the new one",
            "let in",
            test_project.login_answer(host, &new).await?,
        );
    }
    let parent = test_project.role_path(&test_project.branch, "reveal_password");
    let kept = api.get(&parent).await?.value_at("/password") == test_project.login.password;
    findings.expect("the parent keeps its own", kept, "another one");
    Ok(())
}
