//! Branches, what is written on them, and their passwords.

use serde_json::json;
use tenantry::BoxError;

use crate::{
    findings::Findings,
    subject::{ANNOTATION, Login, Subject},
};

/// The annotation of the project's creation is read back, from the branch and from the list.
pub(crate) async fn annotations(
    subject: &Subject,
    findings: &mut Findings,
) -> Result<(), BoxError> {
    let (name, value) = ANNOTATION;
    let path = subject.path(&format!("/branches/{}", subject.branch));
    let branch = subject.api.get(&path).await?;
    findings.same(
        "of a branch",
        value,
        branch.at(&format!("/annotation/value/{name}")),
    );
    findings.same(
        "their object",
        "console/branch",
        branch.at("/annotation/object/type"),
    );
    findings.same(
        "its id",
        &subject.branch,
        branch.at("/annotation/object/id"),
    );
    let listed = subject.api.get(&subject.path("/branches")).await?;
    let place = format!("/annotations/{}/value/{name}", subject.branch);
    findings.same("of all branches", value, listed.at(&place));
    Ok(())
}

/// A branch comes with its parent's roles; its name is unique; its password is its own from the first reset on.
pub(crate) async fn create(subject: &Subject, findings: &mut Findings) -> Result<(), BoxError> {
    let api = &subject.api;
    let order = json!({
        "branch": { "name": "feature" }, "endpoints": [{ "type": "read_write" }], "annotation_value": { "of": "feature" },
    });
    let all = subject.path("/branches");
    let created = api.post(&all, Some(order.clone())).await?;
    findings.same("a creation", 201, created.status);
    findings.same(
        "its operations",
        "[create_branch, start_compute]",
        created.actions(),
    );
    findings.same(
        "its parent",
        &subject.branch,
        created.at("/branch/parent_id"),
    );
    subject.settle().await?;
    let login = Login::of(&created);
    let inherited = login.password == subject.login.password;
    findings.holds("a role has its parent's password", inherited, "another one");
    let again = api.post(&all, Some(order)).await?;
    let taken = r#"409 code "BRANCH_ALREADY_EXISTS" "branch already exists""#;
    findings.same("a second branch of that name", taken, again.said());

    let branch = created.at("/branch/id");
    passwords(subject, findings, &branch, &login).await?;
    let path = subject.path(&format!("/branches/{branch}"));
    let deleted = api.delete(&path).await?;
    findings.same("a deletion", 200, deleted.said());
    findings.same(
        "its operations",
        "[suspend_compute, delete_timeline]",
        deleted.actions(),
    );
    subject.settle().await?;
    findings.same("another deletion", 204, api.delete(&path).await?.said());
    let default = subject.path(&format!("/branches/{}", subject.branch));
    findings.same(
        "a deletion of the default branch",
        422,
        api.delete(&default).await?.status,
    );
    Ok(())
}

/// A password is revealed, and reset for one branch only.
async fn passwords(
    subject: &Subject,
    findings: &mut Findings,
    branch: &str,
    login: &Login,
) -> Result<(), BoxError> {
    let api = &subject.api;
    let reveal = subject.role_path(branch, "reveal_password");
    let revealed = api.get(&reveal).await?.at("/password");
    findings.holds(
        "a password that is revealed",
        revealed == login.password,
        "another one",
    );
    let reset = api
        .post(&subject.role_path(branch, "reset_password"), None)
        .await?;
    let password = reset.at("/role/password");
    findings.hide(&password);
    findings.same("a reset", 200, reset.said());
    findings.same("its operations", "[apply_config]", reset.actions());
    findings.holds(
        "a reset gives another password",
        password != login.password,
        "the same",
    );
    subject.settle().await?;
    let revealed = api.get(&reveal).await?.at("/password");
    findings.holds(
        "the new one is revealed",
        revealed == password,
        "another one",
    );
    let new = Login {
        password,
        ..login.clone()
    };
    for host in [&login.pooled, &login.direct] {
        findings.same(
            "a login with the new one",
            "let in",
            subject.told(host, &new).await?,
        );
    }
    let parent = subject.role_path(&subject.branch, "reveal_password");
    let kept = api.get(&parent).await?.at("/password") == subject.login.password;
    findings.holds("the parent keeps its own", kept, "another one");
    Ok(())
}
