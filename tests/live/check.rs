//! The check: says what it costs, asks every claim, deletes what it created.

use std::{env, str::FromStr, sync::Arc, time::Duration};

use tenantry::BoxError;

use crate::{
    api::Api,
    claims::CLAIMS,
    cold_resume::{
        account::{Account, Budget, cost, minutes, say},
        neon_service::NeonService,
    },
    findings::Findings,
    test_project::TestProject,
};

/// Most minutes and projects, unless variables say otherwise.
const MINUTES: f64 = 15.0;
const PROJECTS: usize = 2;

/// Returns whether Neon does what the emulator claims.
pub(crate) async fn run() -> Result<bool, BoxError> {
    let service = NeonService::from_env()?;
    let minutes_at_most = number("TENANTRY_LIVE_MINUTES", MINUTES)?;
    let budget = Budget {
        projects: number("TENANTRY_LIVE_PROJECTS", PROJECTS)?,
        time: Duration::try_from_secs_f64(minutes_at_most * 60.0)?,
    };
    say(&format!(
        "At {}, by the key in NEON_API_KEY:",
        service.api_url
    ));
    say(&format!(
        "- creates {} projects at most, with the smallest compute, and deletes them, also after Ctrl-C",
        budget.projects
    ));
    say(&format!("- takes {} at most", minutes(budget.time)));
    // Two computes are awake at most.
    say(&format!("- costs at most {}", cost(2 * budget.time)));
    let account = Account::new(service, "tenantry-live", budget);
    account.run(ask(Arc::clone(&account))).await
}

fn number<T: FromStr>(name: &str, default: T) -> Result<T, BoxError> {
    match env::var(name) {
        Ok(text) => text
            .parse()
            .map_err(|_| format!("{name} is not a number").into()),
        Err(_) => Ok(default),
    }
}

async fn ask(account: Arc<Account>) -> Result<bool, BoxError> {
    let api = Api::new(&account.service)?;
    let test_project = TestProject::create(&account, api).await?;
    let mut findings = Findings::default();
    findings.hide(account.service.key());
    findings.hide(&test_project.login.password);
    for claim in CLAIMS {
        findings.begin(claim.name);
        let asked = (claim.ask)(&test_project, &mut findings).await;
        findings.record_outcome(asked);
    }
    Ok(findings.print_summary())
}
