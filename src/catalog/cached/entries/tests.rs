//! Tests of the entries.

use super::*;
use crate::model::error::ErrorKind;

const TTL: Duration = Duration::from_secs(300);

fn cache() -> (EntryCache, TenantId) {
    (EntryCache::new(100, TTL), TenantId::parse("acme").unwrap())
}

fn at(host: &str) -> Arc<Endpoint> {
    Arc::new(Endpoint::postgres(host, "d", "r", "p"))
}

fn deleted() -> Error {
    Error::new(ErrorKind::Deleted, "gone")
}

/// Stores the answer that the tenant is deleted, to a question put at `asked_at`.
fn deny(cache: &EntryCache, tenant: &TenantId, asked_at: Stamp, generation: Option<u64>) -> bool {
    cache.insert_denial(tenant, asked_at, generation, Denial::Refused(deleted()))
}

/// Returns the number of entries of tenants with a record.
fn recorded(cache: &EntryCache) -> usize {
    cache.recorded.sizes().1
}

fn host(cache: &EntryCache, tenant: &TenantId) -> Option<String> {
    match cache.get(tenant)? {
        Entry::Known(known) => Some(known.endpoint.direct_host.clone()),
        Entry::Denied(_) => None,
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_known_grows_old_and_stays() {
    let (cache, acme) = cache();
    assert!(cache.insert_known(&acme, cache.stamp(), Some(1), &at("a"), Standing::Current));
    assert!(!cache.is_stale(&acme));
    tokio::time::advance(Duration::from_secs(269)).await;
    assert!(!cache.is_stale(&acme), "not a tenth early");
    tokio::time::advance(Duration::from_secs(61)).await;
    assert!(cache.is_stale(&acme), "nor a tenth late");
    tokio::time::advance(TTL * 1000).await;
    assert_eq!(host(&cache, &acme).as_deref(), Some("a"));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_was_asked_for_before_a_question_is_not_taken() {
    let (cache, acme) = cache();
    for question in [
        EntryCache::invalidate,
        |cache: &EntryCache, _: &TenantId| {
            cache.invalidate_all();
        },
    ] {
        let asked_at = cache.stamp();
        question(&cache, &acme);
        assert!(!cache.insert_known(&acme, asked_at, Some(9), &at("old"), Standing::Current));
        assert!(!deny(&cache, &acme, asked_at, Some(9)));
        assert!(!cache.insert_denial(&acme, asked_at, Some(9), Denial::Unfinished));
        assert!(!cache.mark_moved(&acme, asked_at, 9));
        assert!(!cache.insert_broken(&acme, asked_at, deleted()));
        assert!(cache.insert_known(&acme, cache.stamp(), Some(1), &at("new"), Standing::Current));
        assert_eq!(host(&cache, &acme).as_deref(), Some("new"));
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_answers_under_way_at_once_the_greater_generation_stays() {
    let (cache, acme) = cache();
    let (earliest, early, late) = (cache.stamp(), cache.stamp(), cache.stamp());
    assert!(cache.insert_known(&acme, late, Some(2), &at("two"), Standing::Current));
    assert!(!cache.insert_known(&acme, early, Some(1), &at("one"), Standing::Current));
    assert!(!deny(&cache, &acme, early, Some(1)));
    assert!(cache.insert_known(&acme, early, Some(3), &at("three"), Standing::Current));
    // A catalog that was restored from a backup continues from an older generation.
    assert!(cache.insert_known(&acme, cache.stamp(), Some(1), &at("one"), Standing::Current));
    assert_eq!(host(&cache, &acme).as_deref(), Some("one"));
    // A tombstone changes no generation.
    assert!(deny(&cache, &acme, cache.stamp(), Some(1)));
    assert!(!cache.insert_known(&acme, earliest, Some(1), &at("one"), Standing::Current));
}

#[tokio::test(start_paused = true)]
async fn a_denial_is_short_and_does_not_forget_that_there_was_a_record() {
    let (cache, acme) = cache();
    assert!(deny(&cache, &acme, cache.stamp(), Some(1)));
    assert!(matches!(cache.get(&acme), Some(Entry::Denied(_))));
    cache.invalidate(&acme);
    assert!(cache.get(&acme).is_none() && cache.was_refused(&acme));
    assert!(deny(&cache, &acme, cache.stamp(), Some(1)));
    tokio::time::advance(DENIED_FOR).await;
    assert!(cache.get(&acme).is_none() && cache.was_refused(&acme));
}

#[tokio::test(start_paused = true)]
async fn a_record_that_has_vanished_is_news_once_and_leaves_what_is_known() {
    let (cache, acme) = cache();
    assert!(cache.mark_missing(&acme).is_none());
    cache.insert_known(&acme, cache.stamp(), Some(1), &at("a"), Standing::Current);
    for news in [true, false, false] {
        tokio::time::advance(TTL * 2).await;
        let (endpoint, is_news) = cache.mark_missing(&acme).unwrap();
        assert_eq!((endpoint.direct_host.as_str(), is_news), ("a", news));
        assert!(!cache.is_stale(&acme), "not asked for over and over");
    }
}

#[tokio::test(start_paused = true)]
async fn both_kinds_of_memory_are_bounded() {
    let (cache, _) = cache();
    for number in 0..MAX_UNKNOWN + 5000 {
        let tenant = TenantId::parse(&format!("t{number}")).unwrap();
        if number < 1000 {
            cache.insert_known(&tenant, cache.stamp(), Some(1), &at("a"), Standing::Current);
        } else {
            cache.insert_denial(&tenant, cache.stamp(), None, Denial::Unknown(None));
        }
    }
    cache.unknown.run_pending_tasks();
    assert_eq!(recorded(&cache), 100);
    assert_eq!(cache.unknown.entry_count(), MAX_UNKNOWN);
}
#[tokio::test(start_paused = true)]
async fn a_tenant_has_one_entry_whatever_was_read_of_it() {
    let (cache, acme) = cache();
    for round in 0..3 {
        cache.insert_denial(&acme, cache.stamp(), None, Denial::Unknown(None));
        assert_eq!(recorded(&cache), 0, "round {round}");
        cache.insert_denial(&acme, cache.stamp(), Some(1), Denial::Unfinished);
        assert!(!cache.unknown.contains_key(&acme) && !cache.was_refused(&acme));
        cache.insert_denial(&acme, cache.stamp(), None, Denial::Unknown(None));
        cache.insert_known(&acme, cache.stamp(), Some(2), &at("a"), Standing::Current);
        assert!(!cache.unknown.contains_key(&acme), "round {round}");
        assert_eq!(host(&cache, &acme).as_deref(), Some("a"));
    }
}

#[tokio::test(start_paused = true)]
async fn what_this_process_has_written_is_not_overwritten_by_what_was_read_before() {
    let (cache, acme) = cache();
    let (read, began) = (cache.stamp(), cache.stamp());
    let read_meanwhile = cache.stamp();
    let (written, _) = cache.note_published(&acme, began);
    for early in [read, read_meanwhile] {
        assert!(!cache.insert_denial(&acme, early, Some(0), Denial::Unfinished));
    }
    assert!(cache.insert_known(&acme, written, None, &at("new"), Standing::Current));
    assert!(!deny(&cache, &acme, read, Some(1)), "an older answer");
    // A change that is noted during a write may be a later one.
    let began = cache.stamp();
    cache.invalidate(&acme);
    let (written, _) = cache.note_published(&acme, began);
    assert!(!cache.insert_known(&acme, written, None, &at("old"), Standing::Current));
}

#[tokio::test(start_paused = true)]
async fn a_record_that_makes_no_sense_is_a_denial_only_of_a_tenant_that_is_not_known() {
    let (cache, acme) = cache();
    let broken = || Error::new(ErrorKind::BadRecord, "no sense");
    cache.insert_known(&acme, cache.stamp(), Some(1), &at("a"), Standing::Current);
    cache.invalidate(&acme);
    assert!(cache.insert_broken(&acme, cache.stamp(), broken()));
    assert_eq!(host(&cache, &acme).as_deref(), Some("a"));
    assert!(!cache.is_stale(&acme), "not read over and over");
    cache.mark_untrusted(&acme);
    assert!(cache.insert_broken(&acme, cache.stamp(), broken()));
    let entry = cache.get(&acme);
    assert!(matches!(entry, Some(Entry::Denied(it)) if matches!(it.denial, Denial::Broken(_))));
}

#[tokio::test(start_paused = true)]
async fn without_an_entry_a_look_up_is_good_until_a_change_is_heard() {
    let (cache, acme) = cache();
    let asked_at = cache.stamp();
    assert!(cache.is_unchanged_since(&acme, asked_at));
    cache.invalidate(&acme);
    assert!(!cache.is_unchanged_since(&acme, asked_at));
    let asked_at = cache.stamp();
    assert!(cache.is_unchanged_since(&acme, asked_at));
    cache.invalidate_all();
    assert!(!cache.is_unchanged_since(&acme, asked_at));
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_is_read_again_and_has_not_changed_is_not_stored_anew() {
    let (cache, acme) = cache();
    cache.insert_known(&acme, cache.stamp(), Some(1), &at("a"), Standing::Current);
    let place = |cache: &EntryCache| match cache.recorded.lock(&acme).known() {
        Some(known) => std::ptr::from_ref(known.id()).addr(),
        None => 0,
    };
    let first = place(&cache);
    cache.mark_untrusted(&acme);
    assert!(cache.insert_known(&acme, cache.stamp(), Some(2), &at("a"), Standing::Current));
    assert!(!cache.is_stale(&acme));
    cache.insert_stale(&acme, &at("a"), Standing::Current);
    assert!(cache.is_stale(&acme) && place(&cache) == first);
    assert!(cache.insert_known(&acme, cache.stamp(), Some(3), &at("b"), Standing::Current));
    assert_eq!(host(&cache, &acme).as_deref(), Some("b"));
    assert_eq!(recorded(&cache), 1);
}

#[tokio::test(start_paused = true)]
async fn the_tenant_that_was_used_last_is_not_evicted_and_the_bound_holds_in_many_shards() {
    let cache = EntryCache::new(10_000, TTL);
    assert_eq!(cache.recorded.sizes(), (16, 0, 0));
    let tenant = |number: u32| TenantId::parse(&format!("t{number}")).unwrap();
    for number in 0..30_000 {
        assert!(cache.insert_known(
            &tenant(number),
            cache.stamp(),
            Some(1),
            &at("a"),
            Standing::Current
        ));
        assert!(cache.get(&tenant(0)).is_some(), "{number}");
        if number % 1000 == 0 {
            assert_eq!(recorded(&cache), 10_000.min(number as usize + 1));
        }
    }
    assert_eq!(cache.recorded.sizes(), (16, 10_000, 10_000));
    let left = (20_000..30_000).filter(|number| cache.contains(&tenant(*number)));
    assert!(left.count() > 9_000, "the newest stay");
}

#[tokio::test(start_paused = true)]
async fn a_known_tenant_costs_at_most_260_bytes() {
    const TENANTS: u32 = 10_000;
    let cache = EntryCache::new(u64::from(TENANTS), TTL);
    let counted = allocation_counter::measure(|| {
        for number in 0..TENANTS {
            let tenant =
                TenantId::parse(&format!("{number:08}-aaaa-4bbb-8ccc-dddddddddddd")).unwrap();
            let endpoint = Endpoint::neon(
                format!("ep-cool-dew-{number:08}.us-east-2.aws.neon.tech"),
                format!("ep-cool-dew-{number:08}-pooler.us-east-2.aws.neon.tech"),
                "neondb",
                "neondb_owner",
                "npg_0123456789ab",
            );
            assert!(cache.insert_known(
                &tenant,
                cache.stamp(),
                Some(1),
                &endpoint,
                Standing::Current
            ));
        }
    });
    let bytes = counted.bytes_current / i64::from(TENANTS);
    assert!((100..=260).contains(&bytes), "{bytes}");
}
