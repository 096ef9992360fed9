//! Neon's API as it is: every answer with its status, nothing repeated.

use reqwest::{Client, Method};
use serde_json::{Value, json};
use tenantry::BoxError;

use crate::cold_resume::neon_service::NeonService;

/// The header with the id that Neon gives a request.
const REQUEST_ID: &str = "x-neon-ret-request-id";

/// A client that shows every answer as it is.
#[derive(Clone)]
pub(crate) struct Api {
    http: Client,
    base: String,
    key: String,
    org_id: Option<String>,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// It has the header with the request's id.
    pub(crate) identified: bool,
    /// `null` if it is empty or not JSON.
    pub(crate) body: Value,
}

impl Api {
    pub(crate) fn new(service: &NeonService) -> Result<Self, BoxError> {
        Ok(Self {
            http: service.http()?,
            base: service.api_url.clone(),
            key: service.key().to_owned(),
            org_id: service.org_id.clone(),
        })
    }

    /// The same with another key.
    pub(crate) fn with_key(&self, key: &str) -> Self {
        Self {
            key: key.to_owned(),
            ..self.clone()
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Answer, BoxError> {
        self.send(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: Option<Value>) -> Result<Answer, BoxError> {
        self.send(Method::POST, path, body).await
    }

    pub(crate) async fn patch(&self, path: &str, body: Value) -> Result<Answer, BoxError> {
        self.send(Method::PATCH, path, Some(body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Result<Answer, BoxError> {
        self.send(Method::DELETE, path, None).await
    }

    /// The projects that a search for `part` finds.
    pub(crate) async fn search(&self, part: &str, recoverable: bool) -> Result<Answer, BoxError> {
        let org = self.org_id.as_ref();
        let org = org.map(|id| format!("&org_id={id}")).unwrap_or_default();
        let deleted = if recoverable { "&recoverable=true" } else { "" };
        self.get(&format!("/projects?limit=400&search={part}{org}{deleted}"))
            .await
    }

    /// A project to be created, of this key's organization.
    pub(crate) fn order(&self, mut project: Value) -> Value {
        if let Some(org_id) = &self.org_id {
            project["org_id"] = json!(org_id);
        }
        json!({ "project": project })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Answer, BoxError> {
        let request = self.http.request(method, format!("{}{path}", self.base));
        let mut request = request.bearer_auth(&self.key);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await?;
        let status = answer.status().as_u16();
        let identified = answer.headers().contains_key(REQUEST_ID);
        let body = answer.bytes().await?;
        Ok(Answer {
            status,
            identified,
            body: serde_json::from_slice(&body).unwrap_or_default(),
        })
    }
}

impl Answer {
    /// Status, and code and text if it is a refusal.
    pub(crate) fn summary(&self) -> String {
        match (&self.body["code"], &self.body["message"]) {
            (Value::String(code), Value::String(text)) => {
                format!("{} code {code:?} {text:?}", self.status)
            }
            _ => self.status.to_string(),
        }
    }

    /// The value at `path`, as text.
    pub(crate) fn value_at(&self, path: &str) -> String {
        match self.body.pointer(path) {
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
            None => "nothing".to_owned(),
        }
    }

    /// The actions of the operations that were begun.
    pub(crate) fn actions(&self) -> String {
        let all = self.body["operations"].as_array().into_iter().flatten();
        let names = all.map(|it| it["action"].as_str().unwrap_or("?"));
        format!("[{}]", names.collect::<Vec<_>>().join(", "))
    }
}
