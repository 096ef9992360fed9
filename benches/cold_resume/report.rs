//! The measurements as tables.

use std::{path::Path, time::Duration};

use tenantry::BoxError;

use super::{
    alone::Alone,
    bystanders::Bystanders,
    chart, herd,
    setting::Setting,
    support::{Samples, Table, write_figures_to},
};

/// Everything that was measured.
pub(crate) struct Report {
    /// `true` if it was measured on an emulator.
    pub(crate) emulated: bool,
    /// A single caller, unless only herds were wanted.
    pub(crate) alone: Option<Alone>,
    pub(crate) herds: Vec<herd::InSetting>,
    /// The time of a byte through each relay, by the round trip that it has to make up.
    pub(crate) relays: Vec<(Duration, Samples)>,
    /// Only an emulator is silent when it is told so.
    pub(crate) bystanders: Option<Bystanders>,
}

impl Report {
    pub(crate) fn print(&self) {
        for (round_trip, took) in &self.relays {
            let (round_trip, times) = (round_trip.as_millis(), [took.ms(0.5), took.ms(0.99)]);
            println!(
                "A relay of {round_trip} ms: median {}, p99 {}",
                times[0], times[1]
            );
        }
        if let Some(alone) = &self.alone {
            self.print_alone(alone);
        }
        println!("\n1,000 callers at once on a suspended tenant, then awake; pool of 16\n");
        self.herd_table().print();
        if let Some(bystanders) = &self.bystanders {
            println!("\n100 callers of ten other tenants\n");
            bystanders.table().print();
        }
    }

    fn print_alone(&self, alone: &Alone) {
        let host = if self.emulated { ", pooled host" } else { "" };
        println!("\nA single caller on a suspended tenant{host}\n");
        self.alone_table(alone).print();
        let (start, stop) = (alone.start.ms(0.5), alone.stop.ms(0.5));
        if self.emulated {
            println!("\nPostgres itself, at the median: start {start}, stop {stop}");
        } else {
            println!("\nA suspend by the API, at the median: {stop}");
        }
    }

    /// The head of the first column.
    const fn about(&self) -> &'static str {
        if self.emulated {
            "wake, TLS, who"
        } else {
            "host, TLS, who"
        }
    }

    fn alone_table(&self, alone: &Alone) -> Table {
        let mut table = Table::new(&[
            self.about(),
            "rounds",
            "median",
            "p90",
            "p99",
            "over floor",
            "p99 over",
            "errors",
        ]);
        for it in &alone.settings {
            let clients = it.clients.iter().map(|of| (of.name, &of.took, of.errors));
            let all = std::iter::once(("floor", &it.floor, 0)).chain(clients);
            for (name, took, errors) in all {
                table.row(&[
                    &described(it.setting, name),
                    &(took.count() + errors as usize).to_string(),
                    &took.ms(0.5),
                    &took.ms(0.9),
                    &took.ms(0.99),
                    &format!("{:.3}", over(took, &it.floor, 0.5)),
                    &format!("{:.3}", over(took, &it.floor, 0.99)),
                    &errors.to_string(),
                ]);
            }
        }
        table
    }

    fn herd_table(&self) -> Table {
        let mut table = Table::new(&[
            self.about(),
            "rounds",
            "floor",
            "median",
            "p99",
            "over deadpool",
            "awake median",
            "awake p99",
            "over awake",
            "warm p99",
            "over warm",
            "logins",
            "errors",
        ]);
        for here in &self.herds {
            for it in &here.herds {
                table.row(&[
                    &described(here.setting, it.name),
                    &it.rounds.len().to_string(),
                    &here.floor.ms(0.5),
                    &it.asleep.ms(0.5),
                    &it.asleep.ms(0.99),
                    &format!("{:.3}", here.over_deadpool(it)),
                    &it.awake.ms(0.5),
                    &it.awake.ms(0.99),
                    &format!("{:.3}", herd::InSetting::over_awake(it)),
                    &it.warm.ms(0.99),
                    &format!("{:.3}", herd::InSetting::over_warm(it)),
                    &it.auth_attempts.map_or("?".to_owned(), |it| it.to_string()),
                    &it.errors.to_string(),
                ]);
            }
        }
        table
    }

    /// Writes figures and curves to `folder`, in files that begin with `name`.
    pub(crate) fn write(&self, folder: &Path, name: &str) -> Result<(), BoxError> {
        write_figures_to(folder, name, &self.figures())?;
        let path = folder.join(format!("{name}.svg"));
        chart::draw(&path, "From a caller's wish to its first row", &self.rows())
    }
}

impl Bystanders {
    fn table(&self) -> Table {
        let mut table = Table::new(&["", "answers", "median", "p90", "p99"]);
        for (name, it) in [
            ("calm", &self.calm),
            ("while 1,000 wait for another's wake", &self.waking),
        ] {
            let answers = it.count().to_string();
            table.row(&[name, &answers, &it.ms(0.5), &it.ms(0.9), &it.ms(0.99)]);
        }
        table
    }
}

/// The time it took in terms of `floor`, at one share of both.
pub(crate) fn over(it: &Samples, floor: &Samples, share: f64) -> f64 {
    it.at(share) / floor.at(share)
}

fn described(setting: Setting, who: &str) -> String {
    format!("{}, {}, {who}", setting.place(), setting.tls())
}
