//! What was measured, as curves.

use std::{iter::once, time::Duration};

use plotters::style::RGBColor;

use crate::{
    chart::{Curve, Panel, Row},
    report::{Report, millis},
    setting::WAKES,
    support::Samples,
};

const GREY: RGBColor = RGBColor(176, 176, 176);
/// In the order of [`Client::all`](crate::client::Client::all).
const COLORS: [RGBColor; 3] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
];

impl Report {
    pub(crate) fn rows(&self) -> [Row<'_>; 3] {
        [
            Row {
                title: "One caller on a suspended tenant (dashed: TLS is asked for first)",
                panels: WAKES.map(|wake| self.one_caller(wake)).into(),
            },
            Row {
                title: "1,000 callers at once, time beyond the floor's median (dashed: on the awake tenant, all of it)",
                panels: WAKES.map(|wake| self.herd(wake)).into(),
            },
            Row {
                title: "100 callers at once of ten other tenants (dashed: while 1,000 wait for a silent wake)",
                panels: vec![self.others()],
            },
        ]
    }

    fn one_caller(&self, wake: Duration) -> Panel<'_> {
        let here = self.alone.settings.iter();
        let here = here.filter(|it| it.setting.wake == wake);
        let curves = here.flat_map(|it| {
            let direct = it.setting.direct_tls;
            let floor = Curve {
                width: 5,
                ..curve("floor", GREY, &it.floor, direct)
            };
            let clients = it.clients.iter().zip(COLORS);
            let clients = clients.map(move |(of, color)| curve(of.name, color, &of.took, direct));
            once(floor).chain(clients)
        });
        Panel {
            title: format!("wake of {}", millis(wake)),
            curves: curves.collect(),
        }
    }

    fn herd(&self, wake: Duration) -> Panel<'_> {
        let here = self.herds.iter();
        let here = here.filter(|it| it.setting.wake == wake && it.setting.direct_tls);
        let curves = here.flat_map(|here| {
            here.herds.iter().zip(COLORS).flat_map(|(it, color)| {
                let asleep = Curve {
                    from: here.floor.at(0.5),
                    ..curve(it.name, color, &it.asleep, true)
                };
                [asleep, curve(it.name, color, &it.awake, false)]
            })
        });
        Panel {
            title: format!("wake of {}", millis(wake)),
            curves: curves.collect(),
        }
    }

    fn others(&self) -> Panel<'_> {
        let (calm, waking) = (&self.bystanders.calm, &self.bystanders.waking);
        Panel {
            title: String::new(),
            curves: vec![
                curve("tenantry", COLORS[0], calm, true),
                curve("tenantry", COLORS[0], waking, false),
            ],
        }
    }
}

/// A solid curve with a name, or the dashed one that goes with it.
fn curve<'a>(name: &'static str, color: RGBColor, samples: &'a Samples, solid: bool) -> Curve<'a> {
    Curve {
        name: solid.then_some(name),
        color,
        width: 2,
        dashed: !solid,
        from: 0.0,
        samples,
    }
}
