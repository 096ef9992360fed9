//! What was measured, as tables.

use std::time::Duration;

use tenantry::BoxError;

use crate::{
    alone::Alone,
    bystanders::Bystanders,
    chart, herd,
    setting::Setting,
    support::{Samples, Table, figures_folder, write_figures},
};

/// Everything that was measured.
pub(crate) struct Report {
    pub(crate) alone: Alone,
    pub(crate) herds: Vec<herd::InSetting>,
    pub(crate) bystanders: Bystanders,
}

impl Report {
    pub(crate) fn print(&self) {
        println!("\nA single caller on a suspended tenant, pooled host\n");
        self.alone_table().print();
        let Alone { start, stop, .. } = &self.alone;
        println!(
            "\nPostgres itself, at the median: start {}, stop {}",
            start.ms(0.5),
            stop.ms(0.5)
        );
        println!("\n1,000 callers at once on a suspended tenant, then awake; pool of 16\n");
        self.herd_table().print();
        println!("\n100 callers of ten other tenants\n");
        self.bystanders.table().print();
    }

    fn alone_table(&self) -> Table {
        let mut table = Table::new(&[
            "wake, TLS, who",
            "rounds",
            "median",
            "p90",
            "p99",
            "over floor",
            "p99 over",
            "errors",
        ]);
        for it in &self.alone.settings {
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
            "wake, TLS, who",
            "rounds",
            "floor",
            "median",
            "p99",
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
                    &it.rounds.to_string(),
                    &here.floor.ms(0.5),
                    &it.asleep.ms(0.5),
                    &it.asleep.ms(0.99),
                    &it.awake.ms(0.5),
                    &it.awake.ms(0.99),
                    &format!("{:.3}", here.over_awake(it)),
                    &it.warm.ms(0.99),
                    &format!("{:.3}", here.over_warm(it)),
                    &it.auth_attempts.to_string(),
                    &it.errors.to_string(),
                ]);
            }
        }
        table
    }

    pub(crate) fn write(&self) -> Result<(), BoxError> {
        write_figures("cold_resume", &self.figures())?;
        let path = figures_folder()?.join("cold_resume.svg");
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

/// How many times as long as `floor` it took, at one share of both.
pub(crate) fn over(it: &Samples, floor: &Samples, share: f64) -> f64 {
    it.at(share) / floor.at(share)
}

fn described(setting: Setting, who: &str) -> String {
    format!("{}, {}, {who}", millis(setting.wake), setting.tls())
}

pub(crate) fn millis(wake: Duration) -> String {
    format!("{} ms", wake.as_millis())
}
