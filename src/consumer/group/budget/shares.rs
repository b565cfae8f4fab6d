//! What each member is due: an integer division by weights within bounds.

/// The largest weight of a member. It keeps the arithmetic within 64 bits, and a step of the division to one each.
pub(in crate::consumer::group) const MAX_WEIGHT: u32 = 10_000;

/// Fixed point: the part of the budget that is due for a weight of 1, in 65,536ths.
const FRACTION: u32 = 16;

/// What one member can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Demand {
    /// 1 to [`MAX_WEIGHT`].
    pub(super) weight: u32,
    /// What it gets in any case; no more than `cap`.
    pub(super) floor: u32,
    /// What it can use at most.
    pub(super) cap: u32,
}

impl Demand {
    fn at(&self, level: u64) -> u32 {
        let due = (level * u64::from(self.weight)) >> FRACTION;
        u32::try_from(due).unwrap_or(u32::MAX).clamp(self.floor, self.cap)
    }
}

/// Divides `budget` in proportion to the weights, as far as floors and caps allow. What some cannot use goes to the
/// others, and nothing is left over that anybody could use. The floors together are within the budget.
pub(super) fn divide(budget: u32, demands: &[Demand]) -> Vec<u32> {
    let sum = |level: u64| demands.iter().map(|demand| u64::from(demand.at(level))).sum::<u64>();
    // The highest level at which the sum fits: for a weight of 1 no level above the whole budget means anything.
    let (mut fits, mut above) = (0, (u64::from(budget) << FRACTION) + 1);
    while above - fits > 1 {
        let middle = fits + (above - fits) / 2;
        if sum(middle) <= u64::from(budget) {
            fits = middle;
        } else {
            above = middle;
        }
    }
    let mut left = u64::from(budget).saturating_sub(sum(fits));
    let shares = demands.iter().map(|demand| {
        let share = demand.at(fits);
        // One step higher would be too much for all, so some have it.
        let step = u32::from(left > 0 && demand.at(fits + 1) > share);
        left -= u64::from(step);
        share + step
    });
    shares.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shares(budget: u32, demands: &[(u32, u32, u32)]) -> Vec<u32> {
        let demands: Vec<_> = demands
            .iter()
            .map(|&(weight, floor, cap)| Demand { weight, floor, cap })
            .collect();
        divide(budget, &demands)
    }

    #[test]
    fn a_budget_is_divided_by_weight_and_nothing_is_left_over() {
        const MANY: u32 = 1000;
        assert_eq!(shares(100, &[(1, 1, MANY)]), [100]);
        assert_eq!(shares(100, &[(1, 1, MANY), (3, 1, MANY)]), [25, 75]);
        assert_eq!(shares(10, &[(1, 1, MANY); 3]), [4, 3, 3]);
        assert_eq!(shares(4, &[(1, 1, MANY), (3, 1, MANY)]), [1, 3]);
        // The floor of the light ones is more than their part; the others divide the rest.
        assert_eq!(
            shares(10, &[(1, 1, MANY), (1, 1, MANY), (98, 1, MANY), (98, 1, MANY)]),
            [1, 1, 4, 4]
        );
        assert!(shares(10, &[]).is_empty());
        assert_eq!(shares(0, &[(1, 0, MANY)]), [0]);
    }

    #[test]
    fn what_one_cannot_use_goes_to_the_others_by_weight() {
        assert_eq!(shares(100, &[(1, 1, 10), (1, 1, 1000), (2, 1, 1000)]), [10, 30, 60]);
        assert_eq!(shares(100, &[(1, 1, 5), (9, 1, 20)]), [5, 20]);
        assert_eq!(
            shares(u32::MAX, &[(MAX_WEIGHT, 1, u32::MAX), (MAX_WEIGHT, 1, u32::MAX)]),
            [u32::MAX / 2 + 1, u32::MAX / 2]
        );
    }

    proptest! {
        #[test]
        fn every_division_keeps_to_bounds_and_uses_what_can_be_used(
            budget in 0..500u32,
            members in prop::collection::vec((1..=MAX_WEIGHT, any::<bool>(), 1..300u32), 0..20)
        ) {
            let demands: Vec<_> = members
                .iter()
                .map(|&(weight, floor, cap)| Demand { weight, floor: u32::from(floor), cap })
                .collect();
            prop_assume!(demands.iter().map(|demand| demand.floor).sum::<u32>() <= budget);
            let shares = divide(budget, &demands);
            for (share, demand) in shares.iter().zip(&demands) {
                prop_assert!((demand.floor..=demand.cap).contains(share));
            }
            let usable = demands.iter().map(|demand| demand.cap).sum::<u32>().min(budget);
            prop_assert_eq!(shares.iter().sum::<u32>(), usable);
            // Who is bounded by neither floor nor cap has what its weight is due, give or take the rounding.
            for (a, one) in shares.iter().zip(&demands) {
                for (b, other) in shares.iter().zip(&demands) {
                    if *a < one.cap && *b > other.floor {
                        prop_assert!(
                            u64::from(*b - 1) * u64::from(one.weight) <= u64::from(*a + 1) * u64::from(other.weight)
                        );
                    }
                }
            }
        }
    }
}
