//! The project that is asked, and how.

use std::sync::Arc;

use serde_json::{Value, json};
use tenantry::{BoxError, tokio_postgres::Config};

use crate::{
    api::{Answer, Api},
    cold_resume::{
        account::Account,
        neon_service::{NeonService, Session},
    },
};

/// A project that was just created.
pub(crate) struct TestProject {
    pub(crate) account: Arc<Account>,
    pub(crate) api: Api,
    pub(crate) name: String,
    /// The answer to its creation.
    pub(crate) created: Answer,
    pub(crate) project: String,
    pub(crate) branch: String,
    pub(crate) endpoint: String,
    pub(crate) login: Login,
}

/// Hosts, database, role and password of a login.
#[derive(Clone, Debug)]
pub(crate) struct Login {
    pub(crate) direct: String,
    pub(crate) pooled: String,
    pub(crate) database: String,
    pub(crate) role: String,
    pub(crate) password: String,
}

/// The annotation of the project's branch.
pub(crate) const ANNOTATION: (&str, &str) = (
    "tenantry-live",
    "a value with ümlauts, \"quotes\" and spaces",
);

impl TestProject {
    /// Creates it.
    pub(crate) async fn create(account: &Arc<Account>, api: Api) -> Result<Self, BoxError> {
        let (name, created) = create_project(account, &api).await?;
        let id = |path: &str| match created.body.pointer(path) {
            Some(Value::String(id)) => Ok(id.clone()),
            _ => Err(format!("the creation's answer has no {path}")),
        };
        Ok(Self {
            account: Arc::clone(account),
            api,
            name,
            project: id("/project/id")?,
            branch: id("/branch/id")?,
            endpoint: id("/endpoints/0/id")?,
            login: Login::of(&created),
            created,
        })
    }

    pub(crate) fn service(&self) -> &NeonService {
        &self.account.service
    }

    /// The path of something of the project's.
    pub(crate) fn path(&self, below: &str) -> String {
        format!("/projects/{}{below}", self.project)
    }

    pub(crate) fn endpoint_path(&self, below: &str) -> String {
        self.path(&format!("/endpoints/{}{below}", self.endpoint))
    }

    pub(crate) fn role_path(&self, branch: &str, below: &str) -> String {
        self.path(&format!(
            "/branches/{branch}/roles/{}/{below}",
            self.login.role
        ))
    }

    /// Waits until no operation goes on.
    pub(crate) async fn wait_until_idle(&self) -> Result<(), BoxError> {
        self.service()
            .neon
            .wait_for_operations(&self.project)
            .await?;
        Ok(())
    }

    /// Returns whether an operation goes on.
    pub(crate) async fn is_busy(&self) -> Result<bool, BoxError> {
        let all = self.service().neon.list_project_operations(&self.project);
        Ok(all.await?.iter().any(tenantry::neon::Operation::is_pending))
    }

    /// A session, and what its connection ends in.
    pub(crate) async fn session(&self, host: &str, login: &Login) -> Result<Session, BoxError> {
        self.service().connect(host, login.config()).await
    }

    /// The answer to a login: severity, SQLSTATE and text, or `let in`.
    pub(crate) async fn login_answer(&self, host: &str, login: &Login) -> Result<String, BoxError> {
        let Err(err) = self.session(host, login).await else {
            return Ok("let in".to_owned());
        };
        let err = err.downcast::<tenantry::tokio_postgres::Error>()?;
        Ok(error_text(&err))
    }
}

/// Creates a project; its name and the answer.
pub(crate) async fn create_project(
    account: &Arc<Account>,
    api: &Api,
) -> Result<(String, Answer), BoxError> {
    let (api, region) = (api.clone(), account.service.plan().region);
    let creation = account.create(|name| async move {
        let mut order = json!({
            "name": name,
            "branch": {
                "database_name": "neondb", "role_name": "neondb_owner", "annotations": { (ANNOTATION.0): ANNOTATION.1 },
            },
            "default_endpoint_settings": { "autoscaling_limit_min_cu": 0.25, "autoscaling_limit_max_cu": 0.25 },
        });
        if let Some(region) = region {
            order["region_id"] = json!(region);
        }
        let answer = api.post("/projects", Some(api.order(order))).await?;
        match answer.body.pointer("/project/id") {
            Some(Value::String(id)) => Ok((id.clone(), (name, answer))),
            _ => Err(format!("no project is created: {}", answer.summary()).into()),
        }
    });
    creation.await
}

impl Login {
    /// Of the first connection that an answer tells of.
    pub(crate) fn of(answer: &Answer) -> Self {
        let at = |name: &str| {
            answer.value_at(&format!("/connection_uris/0/connection_parameters/{name}"))
        };
        Self {
            direct: at("host"),
            pooled: at("pooler_host"),
            database: at("database"),
            role: at("role"),
            password: at("password"),
        }
    }

    fn config(&self) -> Config {
        let mut config = Config::new();
        config
            .user(&self.role)
            .password(&self.password)
            .dbname(&self.database);
        config
    }
}

/// Severity, SQLSTATE and text of an error that the server sent, or the client's own words.
pub(crate) fn error_text(err: &tenantry::tokio_postgres::Error) -> String {
    err.as_db_error().map_or_else(
        || format!("no message ({err})"),
        |it| format!("{} {} {}", it.severity(), it.code().code(), it.message()),
    )
}
