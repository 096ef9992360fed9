//! The processes that share the catalog.

use std::time::Duration;

use super::{Outcome, Stage, equal, until};
use crate::{
    catalog::{Catalog, Process},
    model::error::BoxError,
};

pub(super) async fn processes<R: Catalog>(stage: &Stage<R>) -> Outcome {
    let catalog = &stage.records;
    let known = || async {
        let mut known = catalog.processes().await?;
        known.sort_by(|a, b| a.id.cmp(&b.id));
        let versions = known.into_iter().map(|it| (it.id, it.requires, it.latest));
        Ok::<_, BoxError>(versions.collect::<Vec<_>>())
    };
    let process = |id, requires, latest| Process::new(id, requires, latest, Duration::ZERO);
    equal("the processes before the first", &known().await?, &vec![])?;
    catalog.register(&process("a", 1, 2)).await?;
    catalog.register(&process("b", 2, 3)).await?;
    let both = vec![("a".to_owned(), 1, 2), ("b".to_owned(), 2, 3)];
    equal("the processes", &known().await?, &both)?;

    let old = Duration::from_millis(50);
    let ages = || async {
        let known = catalog.processes().await?;
        Ok::<_, BoxError>(known.into_iter().map(|it| (it.id, it.age)))
    };
    until("a process never becomes older", || async {
        Ok(ages().await?.all(|(_, age)| age > old))
    })
    .await?;
    catalog.register(&process("b", 3, 3)).await?;
    let of = |all: Vec<(String, Duration)>, id: &str| all.into_iter().find(|it| it.0 == id);
    let all: Vec<_> = ages().await?.collect();
    let (a, b) = (of(all.clone(), "a"), of(all, "b"));
    let is_newer = a.zip(b).is_some_and(|(a, b)| a.1 > b.1);
    equal(
        "whether a process becomes young by a call",
        &is_newer,
        &true,
    )?;

    catalog.deregister("a").await?;
    catalog.deregister("never there").await?;
    let left = vec![("b".to_owned(), 3, 3)];
    equal("the processes after one has left", &known().await?, &left)
}
