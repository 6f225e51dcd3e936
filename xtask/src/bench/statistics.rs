//! Order statistics, and how sure a ratio is.
//!
//! ```text
//!   round      1    2    3   ..          median(AxVM) / median(other)      one number
//!   AxVM      5.1  5.4  9.8              the same of rounds drawn again    2000 numbers: the middle 95 % of them
//!   other     8.0  8.3 14.9
//! ```
//!
//! Drawn are whole rounds, with what each of both took in it: a slow phase of the host hit both. This is the percentile
//! bootstrap on pairs; its generator starts from a constant, so that one file of samples gives one table.

use serde::Serialize;

const DRAWS: usize = 2000;
/// Of fewer rounds there is nothing to draw from.
pub const LEAST_ROUNDS: usize = 5;

/// What many samples say together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// How many samples.
    pub n: usize,
    /// Half of them are below.
    pub median: f64,
    /// A tenth of them is below.
    pub p10: f64,
    /// A tenth of them is above.
    pub p90: f64,
}

/// A ratio of medians with its 95 % confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ratio {
    /// Of the medians.
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Of at least one sample.
pub fn summary(samples: &[f64]) -> Option<Summary> {
    let sorted = sorted(samples.iter().copied());
    Some(Summary {
        n: samples.len(),
        median: quantile(&sorted, 0.5)?,
        p10: quantile(&sorted, 0.1)?,
        p90: quantile(&sorted, 0.9)?,
    })
}

/// Median of `ours` by median of `theirs`; both have one sample for each round, in order.
pub fn ratio(ours: &[f64], theirs: &[f64]) -> Option<Ratio> {
    let rounds: Vec<(f64, f64)> = ours.iter().copied().zip(theirs.iter().copied()).collect();
    let value = of_medians(&rounds).filter(|_| rounds.len() >= LEAST_ROUNDS)?;
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let drawn = (0..DRAWS).filter_map(|_| {
        let draw = (0..rounds.len()).map(|_| rounds[next(&mut random) as usize % rounds.len()]);
        of_medians(&draw.collect::<Vec<_>>())
    });
    let drawn = sorted(drawn);
    Some(Ratio { value, low: quantile(&drawn, 0.025)?, high: quantile(&drawn, 0.975)? })
}

fn of_medians(rounds: &[(f64, f64)]) -> Option<f64> {
    let ours = quantile(&sorted(rounds.iter().map(|round| round.0)), 0.5)?;
    let theirs = quantile(&sorted(rounds.iter().map(|round| round.1)), 0.5)?;
    (theirs > 0.0).then(|| ours / theirs)
}

/// Between two samples, in proportion.
fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let place = (sorted.len().checked_sub(1)?) as f64 * part;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    Some(below + (above - below) * place.fract())
}

fn sorted(samples: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut sorted: Vec<f64> = samples.collect();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// xorshift64; the high bits, which are the better ones.
fn next(random: &mut u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random >> 20
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_samples() {
        let summary = summary(&[5.0, 1.0, 3.0, 2.0, 4.0]).unwrap();
        assert_eq!((summary.n, summary.median), (5, 3.0));
        assert!((summary.p10 - 1.4).abs() < 1e-9 && (summary.p90 - 4.6).abs() < 1e-9, "{summary:?}");
        assert_eq!(super::summary(&[]), None);
        assert_eq!(super::summary(&[7.0, 8.0]).unwrap().median, 7.5);
    }

    #[test]
    fn what_hits_both_in_one_round_widens_no_interval() {
        let host: Vec<f64> = (0..40).map(|round| if round % 2 == 0 { 1.0 } else { 10.0 }).collect();
        let (ours, theirs): (Vec<f64>, Vec<f64>) = host.iter().map(|speed| (speed * 3.0, speed * 6.0)).unzip();
        assert_eq!(ratio(&ours, &theirs), Some(Ratio { value: 0.5, low: 0.5, high: 0.5 }));
    }

    #[test]
    fn an_interval_holds_the_truth_and_narrows_with_rounds() {
        let mut random = 1;
        let mut noisy = |around: f64| around + (next(&mut random) % 1000) as f64 / 1000.0;
        let (ours, theirs): (Vec<f64>, Vec<f64>) = (0..150).map(|_| (noisy(1.5), noisy(3.5))).unzip();
        let (few, many) = (ratio(&ours[..20], &theirs[..20]).unwrap(), ratio(&ours, &theirs).unwrap());
        assert!(many.low < 0.5 && 0.5 < many.high, "{many:?}");
        assert!(many.high - many.low < few.high - few.low, "{few:?} {many:?}");
    }

    #[test]
    fn nothing_is_no_ratio() {
        assert_eq!(ratio(&[], &[]), None);
        assert_eq!(ratio(&[1.0; 5], &[0.0; 5]), None);
        assert!(ratio(&[1.0; 4], &[2.0; 4]).is_none() && ratio(&[1.0; 5], &[2.0; 5]).is_some());
    }
}
