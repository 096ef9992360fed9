//! The measurements as curves.

use std::iter::once;

use plotters::style::RGBColor;

use super::{
    alone::Alone,
    bystanders::Bystanders,
    chart::{Curve, Panel, Row},
    report::Report,
    setting::Setting,
    support::Samples,
};

const GREY: RGBColor = RGBColor(176, 176, 176);
/// In the order of [`Client::all`](super::client::Client::all).
const COLORS: [RGBColor; 3] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
];

impl Report {
    pub(crate) fn rows(&self) -> Vec<Row<'_>> {
        let mut places: Vec<_> = self.herds.iter().map(|it| it.setting).collect();
        places.dedup_by_key(|it| it.about());
        let (networks, places): (Vec<_>, Vec<_>) =
            places.into_iter().partition(|it| it.has_network());
        let mut rows = Vec::new();
        for places in [places, networks] {
            if let Some(alone) = &self.alone {
                rows.push(Row {
                    title: "One caller on a suspended tenant (dashed: TLS is asked for first)",
                    panels: places.iter().map(|it| one_caller(alone, *it)).collect(),
                });
            }
            rows.push(Row {
                title: "1,000 callers at once, time beyond the floor's median (dashed: on the awake tenant, all of it)",
                panels: places.iter().map(|it| self.herd(*it)).collect(),
            });
        }
        rows.retain(|it| !it.panels.is_empty());
        rows.extend(self.bystanders.as_ref().map(|it| Row {
            title: "100 callers at once of ten other tenants (dashed: while 1,000 wait for a silent wake)",
            panels: vec![others(it)],
        }));
        rows
    }

    fn herd(&self, place: Setting) -> Panel<'_> {
        let here = self.herds.iter();
        let here = here.filter(|it| it.setting.is_at(place) && it.setting.direct_tls);
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
            title: place.title(),
            curves: curves.collect(),
        }
    }
}

fn one_caller(alone: &Alone, place: Setting) -> Panel<'_> {
    let here = alone.settings.iter();
    let here = here.filter(|it| it.setting.is_at(place));
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
        title: place.title(),
        curves: curves.collect(),
    }
}

fn others(bystanders: &Bystanders) -> Panel<'_> {
    Panel {
        title: String::new(),
        curves: vec![
            curve("tenantry", COLORS[0], &bystanders.calm, true),
            curve("tenantry", COLORS[0], &bystanders.waking, false),
        ],
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
