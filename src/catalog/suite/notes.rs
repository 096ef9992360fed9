//! Notes: short texts that all replicas share.

use std::time::Duration;

use futures_util::future::join_all;

use super::{Outcome, Stage, equal, holds, until};
use crate::catalog::Catalog;

pub(super) async fn notes<R: Catalog>(stage: &Stage<R>) -> Outcome {
    let catalog = &stage.records;
    equal(
        "a note that was never written",
        &catalog.note("a").await?,
        &None,
    )?;
    holds(
        !catalog.write_note("a", "x", 1).await?,
        "a note that was never written is replaced",
    )?;
    let texts = ["one", "two", "three", "four"];
    let writes = texts.map(|text| catalog.write_note("a", text, 0));
    let mut written = Vec::new();
    for (text, answer) in texts.into_iter().zip(join_all(writes).await) {
        written.extend(answer?.then_some(text));
    }
    equal("the number of first writes that count", &written.len(), &1)?;
    let first = catalog.note("a").await?.ok_or("the note is gone")?;
    equal("the note", &first.text.as_str(), &written[0])?;
    holds(
        !catalog.write_note("a", "late", first.version + 1).await?,
        "a version that is not there is replaced",
    )?;
    let old = Duration::from_millis(50);
    until("a note never becomes older", || async {
        Ok(catalog.note("a").await?.is_some_and(|it| it.age > old))
    })
    .await?;
    holds(
        catalog
            .write_note("a", "next \u{e9}\n", first.version)
            .await?,
        "the present version is not replaced",
    )?;
    let next = catalog.note("a").await?.ok_or("the note is gone")?;
    equal("the note", &next.text.as_str(), &"next \u{e9}\n")?;
    holds(next.version > first.version, "a write leaves the version")?;
    equal("another note", &catalog.note("b").await?, &None)
}
