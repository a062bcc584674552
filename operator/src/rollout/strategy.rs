//! How far a rollout may go from what is wanted.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// In pairs. Never both zero: nothing could move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strategy {
    /// Pairs beyond what is wanted.
    pub surge: u32,
    /// Pairs missing from what is wanted.
    pub unavailable: u32,
}

/// A number of pairs, or percent of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    Pairs(u32),
    Percent(u32),
}

impl Amount {
    /// `None`: neither a number that is not negative nor a percentage.
    pub fn parse(value: &IntOrString) -> Option<Amount> {
        match value {
            IntOrString::Int(pairs) => u32::try_from(*pairs).ok().map(Amount::Pairs),
            IntOrString::String(text) => {
                let percent = text.strip_suffix('%')?;
                percent.parse().ok().map(Amount::Percent)
            }
        }
    }
}

impl Strategy {
    /// As Kubernetes' Deployments round: surge up, unavailable down, and if both are zero then one
    /// pair may be unavailable.
    pub fn new(surge: Amount, unavailable: Amount, pairs: u32) -> Strategy {
        let percent = |percent: u32| u64::from(percent) * u64::from(pairs);
        let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let surge = match surge {
            Amount::Pairs(pairs) => pairs,
            Amount::Percent(p) => narrow(percent(p).div_ceil(100)),
        };
        let unavailable = match unavailable {
            Amount::Pairs(pairs) => pairs,
            Amount::Percent(p) => narrow(percent(p) / 100),
        };
        let stands_still = surge == 0 && unavailable == 0;
        Strategy {
            surge,
            unavailable: if stands_still {
                1
            } else {
                unavailable.min(pairs)
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_round_as_those_of_deployments_do() {
        let quarter = Amount::parse(&IntOrString::String("25%".into())).unwrap();
        let strategy = Strategy::new(quarter, quarter, 3);
        assert_eq!((strategy.surge, strategy.unavailable), (1, 0));
        let none = Amount::Pairs(0);
        assert_eq!(Strategy::new(none, quarter, 3).unavailable, 1);
        assert_eq!(Amount::parse(&IntOrString::Int(-1)), None);
        assert_eq!(Amount::parse(&IntOrString::String("x%".into())), None);
    }
}
