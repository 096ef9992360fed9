//! Logins that are refused.

use tenantry::BoxError;

use crate::{
    findings::Findings,
    test_project::{Login, TestProject},
};

/// Asks for the words of each refusal, pooled and direct.
pub(crate) async fn refused(
    test_project: &TestProject,
    findings: &mut Findings,
) -> Result<(), BoxError> {
    let login = &test_project.login;
    let wrong = Login {
        password: "npg_wrong0123456".into(),
        ..login.clone()
    };
    let unknown_role = Login {
        role: "nobody".into(),
        ..login.clone()
    };
    let unknown_database = Login {
        database: "nodb".into(),
        ..login.clone()
    };
    let failed =
        |role: &str| format!("ERROR XX000 password authentication failed for user '{role}'");
    let missing = r#"ERROR XX000 database "nodb" does not exist"#.to_owned();
    for (what, login, expected) in [
        ("a wrong password", &wrong, failed(&login.role)),
        ("an unknown role", &unknown_role, failed("nobody")),
        ("an unknown database", &unknown_database, missing),
        (
            "an unknown endpoint",
            &missing_endpoint(login),
            failed(&login.role),
        ),
        ("what is right", login, "let in".to_owned()),
    ] {
        for (kind, host) in [("pooled", &login.pooled), ("direct", &login.direct)] {
            let told = test_project.login_answer(host, login).await?;
            findings.expect_eq(&format!("{what}, {kind}"), &expected, told);
        }
    }
    Ok(())
}

/// The same at an endpoint that there is not.
fn missing_endpoint(login: &Login) -> Login {
    let moved = |host: &str| {
        let (id, domain) = host.split_once('.').unwrap_or((host, ""));
        let pooler = if id.ends_with("-pooler") {
            "-pooler"
        } else {
            ""
        };
        format!("ep-no-such-00000000{pooler}.{domain}")
    };
    Login {
        pooled: moved(&login.pooled),
        direct: moved(&login.direct),
        ..login.clone()
    }
}
