//! The measurements as tables and as figures.

use tenantry::BoxError;

use crate::{
    kept::MemoryCost,
    setup::Setup,
    spread::median,
    support::{Table, write_figures},
    traffic::Round,
};

/// Everything that was measured.
pub(crate) struct Report {
    pub(crate) setups: Vec<Setup>,
    /// Of each setup.
    pub(crate) rounds: Vec<Vec<Round>>,
    pub(crate) kept: MemoryCost,
    /// Milliseconds of CPU time in a second in which tenants wait at the bound.
    pub(crate) bound: f64,
    /// The figures of a million tenants.
    pub(crate) million: Vec<(String, f64)>,
    pub(crate) clock: f64,
}

impl Report {
    pub(crate) fn print(&self) {
        let rates = ["known", "hits", "evictions per 1000"];
        let times = ["hit p50", "hit p99", "miss p50", "miss p99"];
        let means = ["hit mean", "map mean"];
        let mut calls = Table::new(&[&rates[..], &times[..], &means[..]].concat());
        let mut knowing = Table::new(&["known", "preload", "per tenant", "heap", "resident"]);
        for (setup, rounds) in self.setups.iter().zip(&self.rounds) {
            let known = setup.known().to_string();
            let ns = |of: fn(&Round) -> f64| format!("{:.0} ns", over(rounds, of));
            let us = |of: fn(&Round) -> f64| format!("{:.1} us", over(rounds, of) / 1e3);
            calls.row(&[
                &known,
                &format!("{:.1} %", 100.0 * over(rounds, |it| it.hit_rate)),
                &format!("{:.0}", over(rounds, |it| it.evictions_per_1000)),
                &ns(|it| it.hits.p50),
                &us(|it| it.hits.p99),
                &us(|it| it.misses.p50),
                &us(|it| it.misses.p99),
                &ns(|it| it.hits.mean),
                &ns(|it| it.map.mean),
            ]);
            knowing.row(&[
                &known,
                &format!("{:.1} ms", setup.preload.ms()),
                &format!("{:.2} us", 1e3 * setup.preload.ms() / setup.known()),
                &format!("{:.0} B", setup.heap()),
                &format!("{:.0} B", setup.resident()),
            ]);
        }
        println!(
            "\nTenants by Zipf, 500 pools; reading the clock takes {:.0} ns of each time\n",
            self.clock
        );
        calls.print();
        println!("\nKnowing where tenants live\n");
        knowing.print();
        self.print_costs();
        println!(
            "\nA hit grows by {:.0} ns and a map by {:.0} ns: {:.2}",
            self.growth(hit),
            self.growth(map),
            self.growth(hit) / self.growth(map)
        );
    }

    fn print_costs(&self) {
        let MemoryCost {
            pool,
            connection,
            bare,
            session,
        } = &self.kept;
        println!(
            "\nA pool without a connection keeps {pool:.0} B on top, and an open connection {connection:.0} B, of which"
        );
        println!(
            "a bare client has {bare:.0} B. The scripted server has {session:.0} B for it, which are not counted."
        );
        println!(
            "\n10,000 tenants that wait for one of 500 connections take {:.1} ms of CPU time a second.",
            self.bound
        );
        println!();
        for (name, value) in &self.million {
            println!("{name} {value:.3}");
        }
    }

    pub(crate) fn write(&self) -> Result<(), BoxError> {
        let MemoryCost {
            pool,
            connection,
            bare,
            session,
        } = &self.kept;
        let last = self.setups.last().ok_or("no scene")?;
        let mut figures: Vec<(String, f64)> = [
            ("growth_over_hashmap", self.growth(hit) / self.growth(map)),
            (
                "growth_over_hashmap_by_p50",
                self.growth(|it| it.hits.p50) / self.growth(|it| it.map.p50),
            ),
            ("hit_growth_ns", self.growth(hit)),
            ("hashmap_growth_ns", self.growth(map)),
            ("clock_ns", self.clock),
            ("bytes_per_known_tenant", last.heap()),
            ("resident_bytes_per_known_tenant", last.resident()),
            ("bytes_per_pooled_tenant", *pool),
            ("bytes_per_connected_tenant", *connection),
            ("bytes_per_bare_connection", *bare),
            ("bytes_over_bare_connection", connection - bare),
            ("bytes_per_scripted_session", *session),
            ("budget_cpu_10k_waiting", self.bound),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        for (setup, rounds) in self.setups.iter().zip(&self.rounds) {
            figures.extend(of_one(setup, rounds));
        }
        figures.extend(self.million.iter().cloned());
        write_figures("scale", &figures)
    }

    /// By how much `of` is greater with the most tenants than with the fewest, in nanoseconds: the median of all
    /// rounds, each compared within itself.
    fn growth(&self, of: fn(&Round) -> f64) -> f64 {
        let (Some(fewest), Some(most)) = (self.rounds.first(), self.rounds.last()) else {
            return f64::NAN;
        };
        median(
            fewest
                .iter()
                .zip(most)
                .map(|(few, many)| of(many) - of(few)),
        )
    }
}

fn hit(round: &Round) -> f64 {
    round.hits.mean
}

fn map(round: &Round) -> f64 {
    round.map.mean
}

/// The median of all rounds.
fn over(rounds: &[Round], of: fn(&Round) -> f64) -> f64 {
    median(rounds.iter().map(of))
}

/// The figures of one number of tenants.
fn of_one(setup: &Setup, rounds: &[Round]) -> impl Iterator<Item = (String, f64)> {
    let known = setup.known();
    let figures = [
        ("hit_rate", over(rounds, |it| it.hit_rate)),
        (
            "evictions_per_1000_gets",
            over(rounds, |it| it.evictions_per_1000),
        ),
        ("hit_mean_ns", over(rounds, hit)),
        ("hit_p50_ns", over(rounds, |it| it.hits.p50)),
        ("hit_p99_ns", over(rounds, |it| it.hits.p99)),
        ("miss_p50_us", over(rounds, |it| it.misses.p50) / 1e3),
        ("miss_p99_us", over(rounds, |it| it.misses.p99) / 1e3),
        ("hashmap_mean_ns", over(rounds, map)),
        ("hashmap_p50_ns", over(rounds, |it| it.map.p50)),
        ("preload_ms", setup.preload.ms()),
        ("preload_us_per_tenant", 1e3 * setup.preload.ms() / known),
    ];
    figures
        .into_iter()
        .map(move |(name, value)| (format!("{name}_{known}"), value))
}
