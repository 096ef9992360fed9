//! The least that any code needs to get a tenant a database, and a row from it.

use std::time::Duration;

use rustls::crypto::aws_lc_rs;
use serde_json::{Value, json};
use tenantry::{BoxError, emulator::Emulator};
use tokio::time::Instant;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::support::{Target, tls};

/// Bare code, with what it keeps from one tenant to the next.
pub(crate) struct Baseline<'a> {
    emulator: &'a Emulator,
    http: reqwest::Client,
    tls: MakeRustlsConnect,
}

impl<'a> Baseline<'a> {
    pub(crate) fn new(emulator: &'a Emulator) -> Result<Self, BoxError> {
        // The client wants one, also where nothing is encrypted. There is one already in a second setup.
        let _ = aws_lc_rs::default_provider().install_default();
        Ok(Self {
            emulator,
            http: reqwest::Client::builder().build()?,
            tls: tls(emulator)?,
        })
    }

    /// Creates, asks once for the operations, connects, asks for a row.
    pub(crate) async fn first_access(&self, name: &str) -> Result<Duration, BoxError> {
        let start = Instant::now();
        let order = json!({ "project": { "name": name } });
        let url = format!("{}/projects", self.emulator.api_url());
        let created = self.send(self.http.post(&url).json(&order)).await?;
        let project = text(&created["project"]["id"])?;
        let url = format!("{url}/{project}/operations?limit=10");
        let listed = self.send(self.http.get(&url)).await?;
        let operations = listed["operations"].as_array();
        let operations = operations.ok_or("the answer has no operations")?;
        if operations.iter().any(|it| it["status"] != "finished") {
            return Err("operations go on: there is no floor with one question for them".into());
        }
        let at = &created["connection_uris"][0]["connection_parameters"];
        let (host, password) = (text(&at["pooler_host"])?, text(&at["password"])?);
        let target = Target::at(self.emulator, host, password, self.tls.clone()).await?;
        let calls = start.elapsed();
        Ok(calls + target.connect_plain().await?)
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Value, BoxError> {
        let key = self.emulator.api_key();
        let answer = request.bearer_auth(key.expose()).send().await?;
        Ok(answer.error_for_status()?.json().await?)
    }
}

fn text(value: &Value) -> Result<&str, BoxError> {
    value
        .as_str()
        .ok_or_else(|| "the answer lacks a text".into())
}
