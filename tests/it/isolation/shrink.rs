//! The fewest steps that still fail.

use super::step::Step;

/// The most times that steps are taken again.
const MOST_TRIALS: usize = 150;

/// Leaves out what can be left out of `steps` that fail: first large parts, then single ones. What depends on chance
/// that is not ours (the order of a hash map, the length of a wait) may fail now and not then; what is left has failed.
pub(super) fn shrink(steps: &[Step], fails: impl Fn(&[Step]) -> bool) -> Vec<Step> {
    let mut least = steps.to_vec();
    let mut part = least.len().div_ceil(2);
    let mut trials = 0;
    while part > 0 {
        let (mut from, mut found) = (0, false);
        while from < least.len() && trials < MOST_TRIALS {
            let to = least.len().min(from + part);
            let rest = [&least[..from], &least[to..]].concat();
            trials += 1;
            if fails(&rest) {
                (least, found) = (rest, true);
            } else {
                from = to;
            }
        }
        if trials == MOST_TRIALS {
            break;
        }
        if !found || part > 1 {
            part /= 2;
        }
    }
    least
}

#[test]
fn shrinking_leaves_out_every_step_that_does_not_matter() {
    let steps: Vec<_> = (0..100)
        .map(|n| Step::Wait(std::time::Duration::from_secs(n)))
        .collect();
    let needed = [&steps[17..18], &steps[60..62]].concat();
    let fails = |rest: &[Step]| needed.iter().all(|step| rest.contains(step));
    assert_eq!(shrink(&steps, fails), needed);
}
