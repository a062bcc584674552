//! What a policy must be.

use super::{Behavior, Objectives, Policy, PolicyError, PoolPolicy};
use crate::Role;
use crate::model::PerformanceModel;

/// More replicas than anybody has, so that no search is long.
const MOST_REPLICAS: u32 = 65_536;

impl Policy {
    /// # Errors
    /// What [`crate::decide`] would refuse.
    pub fn validate(&self) -> Result<(), PolicyError> {
        for role in [Role::Prefill, Role::Decode] {
            let PoolPolicy { min, max, .. } = *self.pools.of(role);
            if min > max {
                return Err(PolicyError::Bounds { role, min, max });
            }
        }
        self.check_pools()?;
        self.check_times()?;
        self.model.validate()?;
        let gpus = self.pools.map(|_, pool| u64::from(pool.gpus));
        let minimum = self.minimum();
        let needed =
            gpus.prefill * u64::from(minimum.prefill) + gpus.decode * u64::from(minimum.decode);
        match self.max_gpus {
            Some(max_gpus) if needed > u64::from(max_gpus) => {
                Err(PolicyError::Budget { needed, max_gpus })
            }
            _ => Ok(()),
        }
    }

    fn check_pools(&self) -> Result<(), PolicyError> {
        let PoolPolicy { max, .. } = self.pools.decode;
        let most = max.max(self.pools.prefill.max);
        check("decode max", f64::from(max), max >= 1, "at least 1")?;
        check(
            "max",
            f64::from(most),
            most <= MOST_REPLICAS,
            "at most 65536",
        )?;
        for pool in [self.pools.prefill, self.pools.decode] {
            check(
                "ranks",
                f64::from(pool.ranks),
                pool.ranks >= 1,
                "at least 1",
            )?;
            check("gpus", f64::from(pool.gpus), pool.gpus >= 1, "at least 1")?;
        }
        Ok(())
    }

    fn check_times(&self) -> Result<(), PolicyError> {
        let Objectives {
            quantile,
            ttft_seconds,
            itl_seconds,
            queue_seconds,
        } = self.objectives;
        check(
            "quantile",
            quantile,
            (0.5..=0.999).contains(&quantile),
            "0.5 to 0.999",
        )?;
        let objectives = [
            ("ttftSeconds", ttft_seconds),
            ("itlSeconds", itl_seconds),
            ("queueSeconds", queue_seconds),
        ];
        for (field, value) in objectives {
            if let Some(value) = value {
                check(field, value, value > 0.0 && value.is_finite(), "above 0")?;
            }
        }
        let Behavior {
            up,
            down,
            tolerance,
        } = self.behavior;
        check(
            "tolerance",
            tolerance,
            (0.0..=1.0).contains(&tolerance),
            "0 to 1",
        )?;
        for direction in [up, down] {
            let times = [
                ("stabilizationSeconds", direction.stabilization_seconds),
                ("periodSeconds", direction.period_seconds),
            ];
            for (field, value) in times {
                not_negative(field, value)?;
            }
            let step = direction.max_step;
            check("maxStep", f64::from(step), step >= 1, "at least 1")?;
        }
        not_negative("coldStartSeconds", self.cold_start_seconds)?;
        if let Some(zero) = self.scale_to_zero {
            not_negative("idleSeconds", zero.idle_seconds)?;
        }
        for hint in &self.schedule {
            let (from, until) = (f64::from(hint.from), f64::from(hint.until));
            check("from", from, from < 86_400.0, "below 86400")?;
            check("until", until, until <= 86_400.0, "at most 86400")?;
        }
        Ok(())
    }
}

impl PerformanceModel {
    /// # Errors
    /// Names the first value that no worker can have.
    pub fn validate(&self) -> Result<(), PolicyError> {
        let (prefill, decode) = (&self.prefill, &self.decode);
        let chunk = prefill.chunk_tokens;
        check(
            "prefill.chunkTokens",
            f64::from(chunk),
            chunk >= 1,
            "at least 1",
        )?;
        let coefficients = [
            ("prefill.baseSeconds", prefill.base_seconds),
            ("prefill.secondsPerToken", prefill.seconds_per_token),
            (
                "prefill.secondsPerTokenContext",
                prefill.seconds_per_token_context,
            ),
            ("decode.baseSeconds", decode.base_seconds),
            ("decode.secondsPerSequence", decode.seconds_per_sequence),
            (
                "decode.secondsPerContextToken",
                decode.seconds_per_context_token,
            ),
        ];
        for (field, value) in coefficients {
            not_negative(field, value)?;
        }
        let something = prefill.base_seconds + prefill.seconds_per_token;
        check(
            "prefill.secondsPerToken",
            something,
            something > 0.0,
            "above 0",
        )?;
        check(
            "decode.baseSeconds",
            decode.base_seconds,
            decode.base_seconds > 0.0,
            "above 0",
        )?;
        let (running, tokens) = (self.max_running, self.kv_tokens);
        check("maxRunning", f64::from(running), running >= 1, "at least 1")?;
        check("kvTokens", tokens as f64, tokens >= 1, "at least 1")
    }
}

fn check(
    field: &'static str,
    value: f64,
    holds: bool,
    must: &'static str,
) -> Result<(), PolicyError> {
    match holds {
        true => Ok(()),
        false => Err(PolicyError::Value { field, value, must }),
    }
}

fn not_negative(field: &'static str, value: f64) -> Result<(), PolicyError> {
    // Three years: longer is a mistake.
    let holds = (0.0..=1e8).contains(&value);
    check(field, value, holds, "0 to 100000000")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choose::policy_of_tests as policy;

    #[test]
    fn contradictions_are_named() {
        assert_eq!(policy().validate(), Ok(()));
        let refused = |change: fn(&mut Policy)| {
            let mut policy = policy();
            change(&mut policy);
            policy.validate().unwrap_err().to_string()
        };
        let told = refused(|p| p.pools.decode.min = 99);
        assert_eq!(
            told,
            "Decode: min 99 is above max 14; lower min or raise max"
        );
        let told = refused(|p| p.max_gpus = Some(1));
        assert!(told.contains("take 2 GPUs, but maxGpus is 1"), "{told}");
        let told = refused(|p| p.objectives.ttft_seconds = Some(f64::NAN));
        assert_eq!(told, "ttftSeconds is NaN, but must be above 0");
        let told = refused(|p| (p.pools.decode.min, p.pools.decode.max) = (0, 0));
        assert!(told.contains("at least 1"), "{told}");
        refused(|p| p.model.decode.base_seconds = 0.0);
        refused(|p| p.behavior.down.stabilization_seconds = f64::INFINITY);
        refused(|p| p.behavior.up.max_step = 0);
    }
}
