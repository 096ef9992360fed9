//! The parts that all benchmarks share: samples, a table, the file of figures, and a compute to ask.

pub(crate) mod relay;
mod target;

#[allow(
    unused_imports,
    reason = "not every benchmark has connections of its own"
)]
pub(crate) use target::{QUERY, Target, tls};

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use tenantry::BoxError;

/// Measured times, in order of size.
#[derive(Default)]
pub(crate) struct Samples {
    milliseconds: Vec<f64>,
}

#[allow(dead_code, reason = "not every benchmark asks for everything")]
impl Samples {
    pub(crate) fn add(&mut self, took: Duration) {
        let place = self
            .milliseconds
            .partition_point(|it| *it < took.as_secs_f64() * 1e3);
        self.milliseconds.insert(place, took.as_secs_f64() * 1e3);
    }

    pub(crate) fn extend(&mut self, took: impl IntoIterator<Item = Duration>) {
        let more = took.into_iter().map(|it| it.as_secs_f64() * 1e3);
        self.milliseconds.extend(more);
        self.milliseconds.sort_by(f64::total_cmp);
    }

    /// Adds all of `other`.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.milliseconds.extend(&other.milliseconds);
        self.milliseconds.sort_by(f64::total_cmp);
    }

    pub(crate) const fn count(&self) -> usize {
        self.milliseconds.len()
    }

    /// The value below which that share of the samples lies, in milliseconds; not a number without samples.
    pub(crate) fn at(&self, share: f64) -> f64 {
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a count of samples is a small count"
        )]
        let place = ((self.milliseconds.len() as f64 * share).ceil() as usize).saturating_sub(1);
        self.milliseconds.get(place).copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn ms(&self, share: f64) -> String {
        format!("{:.1} ms", self.at(share))
    }
}

/// The one in the middle; not a number if there is none.
#[allow(dead_code, reason = "not every benchmark compares round by round")]
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A table whose columns are as wide as they must be.
pub(crate) struct Table(Vec<Vec<String>>);

impl Table {
    pub(crate) fn new(head: &[&str]) -> Self {
        Self(vec![head.iter().map(ToString::to_string).collect()])
    }

    pub(crate) fn row(&mut self, cells: &[&str]) {
        self.0.push(cells.iter().map(ToString::to_string).collect());
    }

    pub(crate) fn print(&self) {
        let width = |column: usize| {
            self.0
                .iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        };
        for row in &self.0 {
            let cells = row.iter().enumerate().map(|(column, cell)| match column {
                0 => format!("{cell:<0$}", width(column)),
                _ => format!("{cell:>0$}", width(column)),
            });
            println!("{}", cells.collect::<Vec<_>>().join("  "));
        }
    }
}

/// Shows the progress of a long run on a terminal.
pub(crate) fn progress(samples: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {pos} of {len}, {eta} left");
    let bar = ProgressBar::new(samples as u64);
    style.map_or_else(|_| bar.clone(), |style| bar.clone().with_style(style))
}

/// Writes `target/figures/<bench>.json`: flat pairs of name and number.
#[allow(dead_code, reason = "not every benchmark writes there")]
pub(crate) fn write_figures(
    bench: &str,
    figures: &[(impl AsRef<str>, f64)],
) -> Result<(), BoxError> {
    write_figures_to(&figures_folder()?, bench, figures)
}

/// The same in another folder.
pub(crate) fn write_figures_to(
    folder: &Path,
    bench: &str,
    figures: &[(impl AsRef<str>, f64)],
) -> Result<(), BoxError> {
    let pairs: serde_json::Map<_, _> = figures
        .iter()
        .map(|(name, value)| (name.as_ref().to_owned(), serde_json::json!(value)))
        .collect();
    fs::write(
        folder.join(format!("{bench}.json")),
        serde_json::to_string_pretty(&pairs)?,
    )?;
    Ok(())
}

/// Runs this benchmark with other arguments in a process of its own, in whose memory nothing was used and freed before.
/// Returns the last line that it prints, which is JSON.
#[allow(dead_code, reason = "not every benchmark needs that")]
pub(crate) fn run_apart(arguments: &[&str]) -> Result<serde_json::Value, BoxError> {
    let mut process = Command::new(env::current_exe()?);
    let output = process.args(arguments).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("{arguments:?}: {}", output.status).into());
    }
    let printed = String::from_utf8(output.stdout)?;
    let line = printed.lines().next_back().unwrap_or_default();
    Ok(serde_json::from_str(line)?)
}

/// Bytes of a process that are in memory: of this one, if it is `"self"`.
#[allow(dead_code, reason = "not every benchmark asks for it")]
pub(crate) fn resident(process: &str) -> Result<i64, BoxError> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(number.ok_or("no VmRSS")?.parse::<i64>()? * 1024)
}

/// `target/figures`, where what was measured is written.
pub(crate) fn figures_folder() -> Result<PathBuf, BoxError> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/figures");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}
