//! How long prompts and outputs are: log-normal, by mean and median, between bounds.
//!
//! The named shapes are fitted to summary statistics that were published about traces, not to the traces: those are
//! not part of this repository. What a publication does not give is chosen here, and said so.

use serde::{Deserialize, Serialize};

use super::Sessions;
use crate::random::Random;

/// Log-normal. Its mean and median fix it: the logarithm's deviation is `sqrt(2 ln(mean / median))`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Length {
    pub median: f64,
    /// At least the median. Equal: all are of that length.
    pub mean: f64,
    /// Longer ones are cut to this.
    pub max: u32,
    /// Exponential of this mean instead, for comparisons with queueing theory.
    #[serde(default)]
    pub exponential: bool,
}

/// Prompts (with sessions: what each turn adds) and outputs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lengths {
    pub prompt: Length,
    pub output: Length,
}

/// A public trace's lengths, burstiness and sharing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// Azure LLM inference trace 2023, conversation (Patel et al., Splitwise, ISCA 2024): median prompt 1020 and
    /// output 129 tokens, means 1155 and 211.
    #[serde(rename = "azure-conversation-2023")]
    AzureConversation2023,
    /// The same, coding: medians 1500 and 13, means 2048 and 28.
    #[serde(rename = "azure-code-2023")]
    AzureCode2023,
    /// Azure LLM inference trace 2024, conversation (Stojkovic et al., DynamoLLM, HPCA 2025): means 1631 and 106. The
    /// medians are chosen with the spread of 2023's.
    #[serde(rename = "azure-conversation-2024")]
    AzureConversation2024,
    /// Mooncake, conversation (Qin et al., FAST 2025): mean prompt 12035, output 343, 40 % of prompts' tokens seen
    /// before. Turns and medians are chosen so that prompts and sharing come out near that.
    MooncakeConversation,
    /// Mooncake, tools and agents: 8596, 182, 59 %.
    MooncakeToolAgent,
    /// BurstGPT (Wang et al., 2024): gamma-distributed gaps. The paper fits shapes by period; a coefficient of
    /// variation of 2 is chosen here, and lengths near those of its conversations.
    #[serde(rename = "burstgpt")]
    BurstGpt,
    /// Reasoning: short prompts and long chains of thought, as DeepSeek-R1's. No trace behind it.
    Reasoning,
}

fn length(median: f64, mean: f64, max: u32) -> Length {
    Length {
        median,
        mean,
        max,
        exponential: false,
    }
}

impl Shape {
    pub fn lengths(self) -> Lengths {
        let (prompt, output) = match self {
            Shape::AzureConversation2023 => {
                (length(1020.0, 1155.0, 14_000), length(129.0, 211.0, 1_500))
            }
            Shape::AzureCode2023 => (length(1500.0, 2048.0, 7_500), length(13.0, 28.0, 1_000)),
            Shape::AzureConversation2024 => {
                (length(1440.0, 1631.0, 16_000), length(65.0, 106.0, 1_500))
            }
            Shape::MooncakeConversation => {
                (length(3800.0, 6000.0, 60_000), length(250.0, 343.0, 2_000))
            }
            Shape::MooncakeToolAgent => {
                (length(1700.0, 2500.0, 40_000), length(110.0, 182.0, 2_000))
            }
            Shape::BurstGpt => (length(520.0, 700.0, 4_000), length(230.0, 280.0, 2_000)),
            Shape::Reasoning => (length(400.0, 700.0, 8_000), length(2400.0, 3200.0, 12_000)),
        };
        Lengths { prompt, output }
    }

    /// Coefficient of variation of the gaps between arrivals.
    pub fn variation(self) -> f64 {
        match self {
            Shape::BurstGpt => 2.0,
            _ => 1.0,
        }
    }

    pub fn sessions(self) -> Option<Sessions> {
        let sessions = |turns, think, system_prompts, system_tokens| Sessions {
            turns,
            think,
            system_prompts,
            system_tokens,
        };
        match self {
            Shape::MooncakeConversation => Some(sessions(3.0, 30.0, 64, 512)),
            Shape::MooncakeToolAgent => Some(sessions(3.0, 8.0, 16, 3072)),
            _ => None,
        }
    }
}

impl Length {
    /// At least 1.
    pub fn draw(&self, random: &mut Random) -> u32 {
        let value = if self.exponential {
            self.mean * random.exponential()
        } else {
            let sigma = (2.0 * (self.mean / self.median).ln().max(0.0)).sqrt();
            self.median * (sigma * random.normal()).exp()
        };
        (value.round() as u32).clamp(1, self.max.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_have_the_mean_and_the_median_that_were_asked_for() {
        let asked = Shape::AzureConversation2023.lengths();
        let mut random = Random::new(1, "lengths");
        for length in [asked.prompt, asked.output] {
            let mut drawn: Vec<u32> = (0..50_001).map(|_| length.draw(&mut random)).collect();
            drawn.sort_unstable();
            let median = f64::from(drawn[drawn.len() / 2]);
            let mean = drawn.iter().map(|&n| f64::from(n)).sum::<f64>() / drawn.len() as f64;
            assert!((median / length.median - 1.0).abs() < 0.03, "{median}");
            assert!((mean / length.mean - 1.0).abs() < 0.05, "{mean}");
        }
    }
}
