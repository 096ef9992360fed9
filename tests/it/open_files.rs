//! The limit on open files, looked at before it is met.

use std::sync::{Arc, Mutex};

use tenantry::Endpoint;
use tracing_subscriber::fmt::MakeWriter;

/// The bytes that were logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Returns what a router for so many connections logs when it is built.
fn log_of_router(max_connections: usize) -> String {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).finish();
    tracing::subscriber::with_default(subscriber, || {
        let endpoint = Endpoint::postgres("localhost", "app", "app", "secret");
        let builder = tenantry::TenantRouter::builder(move |_| {
            let endpoint = endpoint.clone();
            async move { Ok(Some(endpoint)) }
        });
        drop(builder.max_connections(max_connections).build().unwrap());
    });
    let bytes = log.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn a_budget_beyond_the_limit_on_open_files_is_warned_of() {
    let log_output = log_of_router(4_000_000_000);
    assert!(
        log_output.contains("WARN") && log_output.contains("ulimit -n"),
        "{log_output}"
    );
    assert!(
        log_output.contains("4000000100"),
        "what to set: {log_output}"
    );
    assert_eq!(log_of_router(10), "");
}
