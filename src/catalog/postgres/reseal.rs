//! Resealing of all passwords with the newest key, while replicas go on writing.

use tokio_postgres::{Row, types::Type};

use super::{
    Postgres,
    connections::Param,
    row::{endpoint, get, place, sealed, unsealable},
};
use crate::{
    catalog::{
        InvalidRecord,
        key_ring::{KeyRing, Sealed},
    },
    model::{
        error::BoxError,
        tenant::{Namespace, TenantId},
    },
};

/// Number of passwords that one statement reseals.
const PAGE: i64 = 200;
/// Most passes through all passwords. More than one is needed if replicas still seal with an older key.
const PASSES: usize = 8;

/// The passwords of one statement, an entry for each. One is written only if its old bytes are still stored.
#[derive(Default)]
struct Page {
    tenants: Vec<String>,
    old: Vec<Vec<u8>>,
    new: Vec<Vec<u8>>,
    marks: Vec<Vec<u8>>,
}

/// The progress of one pass.
#[derive(Default)]
struct Pass {
    resealed: u64,
    /// Number of passwords that do not open; `why` is the error of the first.
    unreadable: u64,
    why: Option<InvalidRecord>,
    /// `true` if a replica wrote one of the passwords during the pass.
    overtaken: bool,
}

impl Postgres {
    /// Seals every password of the namespace anew that is not sealed with the newest key of the ring. Returns the
    /// number of those passwords. Afterwards no older key is needed, if every replica has the newest one as its first.
    ///
    /// The work is done in pages, while the catalog stays in use. It may be stopped and called again. An event `reseal`
    /// reports the progress after each page.
    ///
    /// # Errors
    /// If the catalog fails, if there are no keys, or if no key of the ring opens some of the passwords. In the last
    /// case, all other passwords are resealed.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the page under way either done or not done.
    pub async fn reseal(&self) -> Result<u64, BoxError> {
        let namespace = self.namespace()?.clone();
        let keys = self
            .keys()
            .ok_or("the catalog has no keys to seal passwords with; give it a KeyRing")?
            .clone();
        let mut resealed = 0;
        for _ in 0..PASSES {
            let pass = self.reseal_all(&namespace, &keys).await?;
            resealed += pass.resealed;
            if let Some(why) = pass.why {
                let message = format!(
                    "{} passwords cannot be resealed; the first: {why}",
                    pass.unreadable
                );
                return Err(message.into());
            }
            if !pass.overtaken {
                return Ok(resealed);
            }
        }
        Err("a replica still seals with an older key; give every replica the newest one first, then call this \
             again".into())
    }

    async fn reseal_all(&self, namespace: &Namespace, keys: &KeyRing) -> Result<Pass, BoxError> {
        let (mut pass, mut after) = (Pass::default(), String::new());
        loop {
            let rows = self.not_sealed_newest(namespace, keys, &after).await?;
            let Some(last) = rows.last() else {
                return Ok(pass);
            };
            after = get(last, "tenant")?;
            let page = Page::of(&rows, namespace, keys, &mut pass);
            let done = self.reseal_page(namespace, keys, &page).await?;
            pass.resealed += done;
            pass.overtaken |= done < page.tenants.len() as u64;
            tracing::info!(
                resealed = pass.resealed,
                unreadable = pass.unreadable,
                after,
                "reseal"
            );
        }
    }

    async fn not_sealed_newest(
        &self,
        namespace: &Namespace,
        keys: &KeyRing,
        after: &str,
    ) -> Result<Vec<Row>, BoxError> {
        let (namespace, newest) = (namespace.as_str(), keys.newest_id());
        let params: [Param<'_>; 4] = [
            (&namespace, Type::TEXT),
            (&after, Type::TEXT),
            (&newest, Type::TEXT),
            (&PAGE, Type::INT8),
        ];
        self.ask(&self.statements().unsealed_so_far, &params).await
    }

    async fn reseal_page(
        &self,
        namespace: &Namespace,
        keys: &KeyRing,
        page: &Page,
    ) -> Result<u64, BoxError> {
        if page.tenants.is_empty() {
            return Ok(0);
        }
        let (namespace, newest) = (namespace.as_str(), keys.newest_id());
        let params: [Param<'_>; 6] = [
            (&namespace, Type::TEXT),
            (&newest, Type::TEXT),
            (&page.tenants, Type::TEXT_ARRAY),
            (&page.old, Type::BYTEA_ARRAY),
            (&page.new, Type::BYTEA_ARRAY),
            (&page.marks, Type::BYTEA_ARRAY),
        ];
        let rows = self.ask(&self.statements().reseal, &params).await?;
        Ok(rows.len() as u64)
    }
}

impl Page {
    /// Opens and seals the passwords in `rows`, and counts those for which that fails.
    fn of(rows: &[Row], namespace: &Namespace, keys: &KeyRing, pass: &mut Pass) -> Self {
        let mut page = Self::default();
        for row in rows {
            if let Err(why) = page.push(row, namespace, keys) {
                pass.unreadable += 1;
                tracing::warn!(tenant = get::<String>(row, "tenant").ok(), %why, "a password cannot be resealed");
                pass.why.get_or_insert(why);
            }
        }
        page
    }

    fn push(
        &mut self,
        row: &Row,
        namespace: &Namespace,
        keys: &KeyRing,
    ) -> Result<(), InvalidRecord> {
        let (Some(endpoint), Some(old)) = (endpoint(row)?, sealed(row)?) else {
            return Err(InvalidRecord::new("the record has a password but no host"));
        };
        let tenant = TenantId::parse(&get::<String>(row, "tenant")?);
        let tenant = tenant.map_err(|err| InvalidRecord::new(err.to_string()))?;
        let place = place(namespace, &tenant, &endpoint);
        let secret = keys.open(&old, &place).map_err(|err| unsealable(&err))?;
        let Sealed { bytes, .. } = keys.seal(&secret, &place).map_err(|err| unsealable(&err))?;
        let mark = keys.marks(&secret, &place).into_iter().next();
        self.tenants.push(tenant.as_str().to_owned());
        self.old.push(old.bytes);
        self.new.push(bytes);
        self.marks
            .push(mark.map(|(_, mark)| mark).unwrap_or_default());
        Ok(())
    }
}
