//! Export of traces to OpenTelemetry: calls to a tenant that is created, awake or asleep arrive as spans at a
//! collector.
//!
//! `tests/with-postgres cargo run --example opentelemetry` starts a small collector that prints the spans. With
//! `OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318` the spans go to your own collector, by OTLP over HTTP.

use std::{env, sync::Mutex, time::Duration};

use axum::{Json, Router, routing::post};
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use serde_json::Value;
use tenantry::{BoxError, Neon, Provisioner, TenantRouter, catalog::Memory, emulator::Emulator};
use tokio::net::TcpListener;
use tracing::{Instrument, info_span};
use tracing_subscriber::{EnvFilter, prelude::*};

/// The outcomes of the calls that the collector has received.
static ARRIVED: Mutex<Vec<String>> = Mutex::new(Vec::new());

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let yours = env::var("OTEL_EXPORTER_OTLP_ENDPOINT").ok();
    let collector = match &yours {
        Some(yours) => yours.clone(),
        None => collect().await?,
    };
    let provider = export_to(&collector)?;

    let emulator = Emulator::builder()
        .wake_delay(Duration::from_millis(350))
        .start()
        .await?;
    let neon = Neon::builder(emulator.api_key())
        .base_url(emulator.api_url())
        .build()?;
    let provisioner = Provisioner::new(Memory::new(), neon, "traces").on_first_access();
    let router = TenantRouter::provisioning(provisioner)
        .resolve(emulator.resolver())
        .root_certificate(emulator.root_certificate())
        .build()?;
    // The application's own span around each request is the parent of the calls' spans.
    for request in ["first", "second", "after a suspend"] {
        if request == "after a suspend" {
            emulator.suspend_all().await;
        }
        let call = async { router.get("acme").await.map(drop) };
        call.instrument(info_span!("request", request)).await?;
    }
    router.close().await;
    tokio::task::spawn_blocking(move || provider.shutdown()).await??; // sends the remaining spans
    let arrived = ARRIVED.lock().map_err(|err| err.to_string())?;
    if yours.is_none() && *arrived != ["provisioned", "warm", "cold"] {
        return Err(format!("not what should have arrived: {arrived:?}").into());
    }
    Ok(())
}

/// Sends all spans of tenantry, and of this file, to `collector`.
fn export_to(collector: &str) -> Result<SdkTracerProvider, BoxError> {
    // If several providers of cryptography are linked, the exporter's client uses the process's default.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let exporter = SpanExporter::builder()
        .with_http()
        .with_endpoint(format!("{collector}/v1/traces"))
        .build()?;
    let provider = SdkTracerProvider::builder()
        .with_resource(Resource::builder().with_service_name("app").build())
        .with_batch_exporter(exporter)
        .build();
    tracing_subscriber::registry()
        .with(EnvFilter::new("off,opentelemetry=info,tenantry=debug")) // the spans are at DEBUG
        .with(tracing_opentelemetry::layer().with_tracer(provider.tracer("app")))
        .init();
    Ok(provider)
}

/// Starts a collector that prints each span: its start since the first one, its duration, and its fields.
async fn collect() -> Result<String, BoxError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let collector = Router::new().route("/v1/traces", post(print));
    tokio::spawn(async move { axum::serve(listener, collector).await });
    Ok(format!("http://{address}"))
}

async fn print(Json(traces): Json<Value>) -> Json<Value> {
    let of = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let scopes = of(&traces, "resourceSpans")
        .into_iter()
        .flat_map(|it| of(&it, "scopeSpans"));
    let mut spans: Vec<Value> = scopes.flat_map(|it| of(&it, "spans")).collect();
    let nanoseconds = |span: &Value, key: &str| {
        span[key]
            .as_str()
            .and_then(|it| it.parse::<u64>().ok())
            .unwrap_or_default()
    };
    spans.sort_by_key(|span| nanoseconds(span, "startTimeUnixNano"));
    let start = spans
        .first()
        .map(|span| nanoseconds(span, "startTimeUnixNano"));
    println!("{:>10} {:>10}  span", "began", "took");
    for span in &spans {
        let began = nanoseconds(span, "startTimeUnixNano");
        let took = Duration::from_nanos(nanoseconds(span, "endTimeUnixNano") - began);
        let began = Duration::from_nanos(began - start.unwrap_or_default());
        let wanted = ["request", "tenant", "outcome", "operation", "status"];
        let fields = of(span, "attributes");
        let fields = fields.iter().filter_map(|it| {
            let name = it["key"].as_str().filter(|name| wanted.contains(name))?;
            Some(format!("{name}={}", it["value"]["stringValue"].as_str()?))
        });
        let fields: Vec<_> = fields.collect();
        let outcomes = fields.iter().filter_map(|it| it.strip_prefix("outcome="));
        if let Ok(mut arrived) = ARRIVED.lock() {
            arrived.extend(outcomes.map(str::to_owned));
        }
        let name = span["name"].as_str().unwrap_or_default();
        println!(
            "{began:>10.1?} {took:>10.1?}  {name:<9} {}",
            fields.join(" ")
        );
    }
    Json(Value::Object(serde_json::Map::new()))
}
