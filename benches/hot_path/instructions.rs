//! The instructions of one call, counted by callgrind: the same in every run, however busy the machine is.
//!
//! The counted code runs in a process of its own, on one thread, below one function: nothing of the set-up counts. The
//! kernel's part does not count either. What was counted before is kept in `instructions.json`, beside the compiler's
//! version, because another one makes other code of the same source.

use std::{
    collections::BTreeMap,
    env, fs,
    hint::black_box,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use serde_json::{Value, json};
use tenantry::BoxError;
use tokio::{
    runtime::{Builder, Runtime},
    task::yield_now,
};

use crate::{
    backend::Backend,
    ids::DrawnIds,
    subjects::{ConnectionSource, Floor, Handles, PoolCache, TenantryRouter, fill, pools, router},
    support::figures_folder,
};

/// Tells a process that it is counted, and what it is to call.
const MODE_VARIABLE: &str = "INSTRUCTIONS";
/// Tenants, each with an idle connection.
const TENANTS: usize = 1_000;
/// Calls that are counted, after as many that are not.
const CALLS: usize = 10_000;
/// Tasks that wait for the connections of one tenant, and the calls of each.
const TASKS: usize = 8;
/// The calls that are counted, and their figures.
const COUNTED: [(&str, &str); 5] = [
    ("get", "get_instructions"),
    ("handle", "handle_instructions"),
    ("floor", "floor_instructions"),
    ("wait", "wait_instructions"),
    ("plain_wait", "plain_wait_instructions"),
];
/// Those of our own code, which must not grow.
const OURS: [&str; 3] = [
    "get_instructions",
    "handle_instructions",
    "wait_instructions",
];
/// The count that the others are compared with if the compiler is another one.
const FLOOR: &str = "floor_instructions";
/// By how much a count may grow, and by how much its ratio to the floor may with another compiler.
const TOLERANCE: f64 = 0.05;
const OTHER_COMPILER: f64 = 0.1;

/// The counts, by figure.
pub(crate) type Counts = BTreeMap<String, f64>;

/// Counts everything; `None` where there is no valgrind.
pub(crate) fn count() -> Result<Option<Counts>, BoxError> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("instructions: skipped, there is no valgrind here");
        return Ok(None);
    }
    let mut counts = Counts::new();
    for (what, figure) in COUNTED {
        counts.insert(figure.to_owned(), count_one(what)?);
    }
    Ok(Some(counts))
}

fn count_one(what: &str) -> Result<f64, BoxError> {
    let file = figures_folder()?.join(format!("callgrind.{what}"));
    let mut option = std::ffi::OsString::from("--callgrind-out-file=");
    option.push(&file);
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no"])
        .arg("--toggle-collect=*measured_calls*")
        .arg(option)
        .arg(env::current_exe()?)
        .env(MODE_VARIABLE, what)
        .output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("callgrind of {what} failed:\n{said}").into());
    }
    let counted = fs::read_to_string(&file)?;
    let total = counted
        .lines()
        .find_map(|line| line.strip_prefix("totals: "));
    let total: f64 = total.ok_or("callgrind wrote no totals")?.trim().parse()?;
    if total == 0.0 {
        return Err(format!("callgrind found no call of {what}").into());
    }
    #[allow(clippy::cast_precision_loss, reason = "a small count")]
    let calls = CALLS as f64;
    Ok((total / calls).round())
}

/// Compares with what is kept; an error says what has grown. Says what has shrunk, so that it can be kept.
pub(crate) fn check(counts: &Counts) -> Result<(), BoxError> {
    let Ok(kept) = fs::read_to_string(kept_file()) else {
        println!("instructions: none are kept yet; keep them with `-- instructions --keep`");
        return Ok(());
    };
    let kept: Value = serde_json::from_str(&kept)?;
    let same_compiler = kept["rustc"].as_str() == Some(&*compiler()?);
    let before = |figure: &str| kept[figure].as_f64().unwrap_or(f64::NAN);
    let mut grown = Vec::new();
    for figure in OURS {
        let (mut now, mut then, mut tolerance) = (counts[figure], before(figure), TOLERANCE);
        if !same_compiler {
            (now, then) = (now / counts[FLOOR], then / before(FLOOR));
            tolerance = OTHER_COMPILER;
        }
        let change = 100.0 * (now / then - 1.0);
        let line = format!("{figure}: {then:.2} before, {now:.2} now, {change:+.1} %");
        println!("{line}");
        if now / then > 1.0 + tolerance {
            grown.push(format!("{line}\n{}", dearest(figure)));
        } else if now / then < 1.0 - tolerance {
            println!(
                "{figure}: keep that with `cargo bench --bench hot_path -- instructions --keep`"
            );
        }
    }
    if !same_compiler {
        println!("another compiler than before: what is compared is the ratio to the floor");
    }
    grown
        .is_empty()
        .then_some(())
        .ok_or_else(|| format!("more instructions than before:\n{}", grown.join("\n")).into())
}

/// The functions that take most of it.
fn dearest(figure: &str) -> String {
    let what = COUNTED.iter().find(|(_, name)| *name == figure);
    let file =
        figures_folder().map(|it| it.join(format!("callgrind.{}", what.map_or("", |it| it.0))));
    let Ok(file) = file else { return String::new() };
    let annotated = Command::new("callgrind_annotate").arg(file).output();
    let annotated = annotated.map_or_else(|_| Vec::new(), |it| it.stdout);
    let annotated = String::from_utf8_lossy(&annotated);
    annotated.lines().take(45).collect::<Vec<_>>().join("\n")
}

/// Keeps `counts` to compare later ones with.
pub(crate) fn keep(counts: &Counts) -> Result<(), BoxError> {
    let mut kept = json!({ "rustc": compiler()? });
    for (figure, count) in counts {
        kept[figure] = json!(count);
    }
    let text = serde_json::to_string_pretty(&kept)?;
    Ok(fs::write(kept_file(), text + "\n")?)
}

fn kept_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/hot_path/instructions.json")
}

/// The compiler's version.
fn compiler() -> Result<String, BoxError> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let said = Command::new(rustc).arg("--version").output()?;
    let said = String::from_utf8(said.stdout)?;
    let version = said.split(' ').nth(1);
    Ok(version.ok_or("rustc has no version")?.trim().to_owned())
}

/// Makes the calls that are counted, if this is a process that is to; says whether it was.
pub(crate) fn serve() -> Result<bool, BoxError> {
    let Ok(what) = env::var(MODE_VARIABLE) else {
        return Ok(false);
    };
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let backend = Backend::default();
    match &*what {
        "get" | "handle" => {
            let ours = runtime.block_on(router(&backend, TENANTS, TENANTS))?;
            if what == "get" {
                one_by_one(&runtime, &TenantryRouter(ours));
            } else {
                one_by_one(&runtime, &Handles::new(&ours, TENANTS)?);
            }
        }
        "floor" => one_by_one(&runtime, &Floor::new(TENANTS)),
        "wait" => {
            let ours = runtime.block_on(router(&backend, 1, 1))?;
            all_at_once(&runtime, &Arc::new(TenantryRouter(ours)));
        }
        "plain_wait" => {
            let pools = runtime.block_on(pools(&backend, 1))?;
            all_at_once(&runtime, &Arc::new(PoolCache::new(&pools)));
        }
        what => return Err(format!("{what} is not counted").into()),
    }
    Ok(true)
}

fn one_by_one(runtime: &Runtime, subject: &impl ConnectionSource) {
    let draws = DrawnIds::uniform(TENANTS);
    let mut calls = || {
        runtime.block_on(async {
            for (tenant, id) in draws.calls(0, CALLS) {
                drop(black_box(subject.get(tenant, id).await));
            }
        });
    };
    calls();
    measured_calls(&mut calls);
}

/// All tasks want one tenant, and each yields while it has one of the connections.
fn all_at_once(runtime: &Runtime, subject: &Arc<impl ConnectionSource>) {
    let draws = Arc::new(DrawnIds::uniform(1));
    runtime.block_on(fill(&**subject));
    let mut calls = || {
        runtime.block_on(async {
            let caller = |_| {
                let (draws, subject) = (Arc::clone(&draws), Arc::clone(subject));
                tokio::spawn(async move {
                    for (tenant, id) in draws.calls(0, CALLS / TASKS) {
                        let held = black_box(subject.get(tenant, id).await);
                        yield_now().await;
                        drop(held);
                    }
                })
            };
            let tasks: Vec<_> = (0..TASKS).map(caller).collect();
            for task in tasks {
                task.await.expect("no call fails");
            }
        });
    };
    calls();
    measured_calls(&mut calls);
}

/// The function below which callgrind counts: it knows the function by its name, which no other has.
#[inline(never)]
fn measured_calls(calls: &mut dyn FnMut()) {
    calls();
}
