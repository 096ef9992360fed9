//! Cases about namespaces and the ids of tenants.

use super::{Outcome, Stage, equal, holds, tenant};
use crate::{
    catalog::Catalog,
    model::tenant::{Namespace, TenantId},
};

pub(super) fn one_namespace<R: Catalog>(stage: &Stage<R>) -> Outcome {
    let (same, other) = (Namespace::parse("suite")?, Namespace::parse("suite-2")?);
    let again = stage.records.bind(&same, stage.with_passwords);
    holds(
        again.is_ok(),
        "it refuses to be bound to the same namespace again",
    )?;
    let other = stage.records.bind(&other, stage.with_passwords);
    holds(other.is_err(), "it accepts a second namespace")
}

/// Returns ids that differ, and that some databases would compare as equal.
fn ids() -> Vec<TenantId> {
    let longest = [
        "x".repeat(256),
        format!("{}y", "x".repeat(255)),
        "é".repeat(128),
    ];
    let odd = [
        "acme",
        "Acme",
        "ACME",
        "acme ",
        " acme",
        "acme\t",
        "acm",
        "acmee",
        "é",
        "e\u{301}",
        "ﬁ",
        "fi",
        "ß",
        "ss",
        "ı",
        "i",
        "I",
        "'",
        "''",
        "\"",
        "\\",
        "%",
        "_",
        "a%",
        "a_me",
        "*",
        "../acme",
        "a/b",
        "a\nb",
        "😀",
        "😀😀",
        "\u{200b}",
        "\u{feff}",
        "0",
        "00",
        "-0",
        "1e3",
        "null",
        "NULL",
        "$1",
        "{}",
        "\u{10ffff}",
        "\u{1}",
        "1",
        "²",
    ];
    odd.into_iter()
        .map(tenant)
        .chain(longest.iter().map(|it| tenant(it)))
        .collect()
}

pub(super) async fn byte_for_byte<R: Catalog>(stage: &Stage<R>) -> Outcome {
    let ids = ids();
    for (at, id) in ids.iter().enumerate() {
        let before = stage.records.find(id).await?;
        holds(
            before.is_none(),
            &format!("{id:?} is mistaken for one of {:?}", &ids[..at]),
        )?;
        stage.ready(id, &format!("project-{at}")).await?;
    }
    for (at, id) in ids.iter().enumerate() {
        let found = stage.found(id).await?;
        equal("the tenant of a record", &found.tenant, id)?;
        equal(
            "the project of a record",
            &found.project(),
            &Some(format!("project-{at}").as_str()),
        )?;
    }
    let mut sorted = ids.clone();
    sorted.sort_unstable(); // byte by byte
    let listed: Vec<_> = stage
        .records
        .list(None, 1000)
        .await?
        .into_iter()
        .map(|it| it.tenant)
        .collect();
    equal("the order of the list", &listed, &sorted)
}
