//! Options by name, applied to a consumer.

use std::sync::Arc;
use std::time::Duration;

use super::builder::ConsumerBuilder;
use crate::backoff::{Exponential, FullJitter};
use crate::config::{ConsumerValues, Options, put};

impl ConsumerBuilder {
    /// Sets what these options say and concerns consumers; what is for producers is ignored. What they do not say stays as
    /// it is: of this and other setters, the later call counts. Default: none.
    ///
    /// So call [`connection`](Self::connection) first: called later, it replaces all of what the options say of the connection.
    /// Where that would drop TLS, it is an error.
    ///
    /// What contradicts itself (`snappy` and `deflate`, TLS that is not asked for) is reported by [`start`](Self::start).
    ///
    /// ```
    /// use async_nsq::{Consumer, Options};
    ///
    /// # fn main() -> Result<(), async_nsq::Error> {
    /// let options = Options::from_vars("NSQ_", [("NSQ_MAX_IN_FLIGHT", "2500"), ("NSQ_BACKOFF_STRATEGY", "full_jitter")])?;
    /// let builder = Consumer::builder("orders", "billing").max_in_flight(100).options(&options);
    /// # let _ = builder;
    /// # Ok(())
    /// # }
    /// ```
    pub fn options(mut self, options: &Options) -> Self {
        let values = options.values();
        self.connection.apply(&values);
        self.discovery.apply(&values.discovery);
        self.apply(&values.consumer);
        self
    }

    fn apply(&mut self, given: &ConsumerValues) {
        if let Some(percent) = given.sample_rate {
            self.connection.sample_rate = Some(percent).filter(|percent| *percent > 0);
        }
        put(&mut self.flow.max_in_flight, &given.max_in_flight);
        put(&mut self.flow.max_backoff_duration, &given.max_backoff_duration);
        put(&mut self.flow.low_rdy_idle_timeout, &given.low_rdy_idle_timeout);
        put(&mut self.flow.low_rdy_timeout, &given.low_rdy_timeout);
        put(
            &mut self.flow.rdy_redistribute_interval,
            &given.rdy_redistribute_interval,
        );
        put(&mut self.concurrency, &given.concurrency);
        put(&mut self.rules.max_attempts, &given.max_attempts);
        put(&mut self.rules.default_requeue_delay, &given.default_requeue_delay);
        put(&mut self.rules.max_requeue_delay, &given.max_requeue_delay);
        put(&mut self.rules.patience.handler_timeout, &given.handler_timeout);
        put(&mut self.rules.patience.keep_alive, &given.keep_alive);
        put(&mut self.discovery.create, &given.create_topic_and_channel);
        if given.full_jitter.is_some() || given.backoff_multiplier.is_some() {
            let multiplier = given.backoff_multiplier.unwrap_or(Duration::from_secs(1));
            self.backoff = match given.full_jitter {
                Some(true) => Arc::new(FullJitter::new(multiplier)),
                _ => Arc::new(Exponential::new(multiplier)),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::options_tests::check_reach;
    use crate::consumer::Consumer;

    /// All that options can change, as text.
    fn fingerprint(builder: &ConsumerBuilder) -> String {
        let rules = &builder.rules;
        format!(
            "{} {:?} {:?} {:?} {:?} {:?}",
            builder.connection.fingerprint(),
            builder.flow,
            builder.discovery,
            (builder.concurrency, &rules.patience),
            (rules.max_attempts, rules.default_requeue_delay, rules.max_requeue_delay),
            [0.0, 0.5].map(|jitter| builder.backoff.delay(1, jitter)),
        )
    }

    #[test]
    fn each_option_reaches_what_it_concerns_and_defaults_change_nothing() {
        let builder = Consumer::builder("orders", "billing");
        check_reach(
            "consumers",
            &builder,
            |builder, options| builder.options(options),
            fingerprint,
        );
    }

    #[test]
    fn of_options_and_setters_the_later_call_counts() {
        let options = |name, value| {
            let mut options = Options::new();
            options.set(name, value).map(|()| options).unwrap()
        };
        let builder = || Consumer::builder("orders", "billing");
        let five = options("max_in_flight", "5");
        assert_eq!(builder().max_in_flight(7).options(&five).flow.max_in_flight, 5);
        assert_eq!(builder().options(&five).max_in_flight(7).flow.max_in_flight, 7);
        let six = options("max_in_flight", "6");
        assert_eq!(builder().options(&five).options(&six).flow.max_in_flight, 6);
        let pause = |builder: ConsumerBuilder| builder.backoff.delay(1, 0.0);
        let multiplied = options("backoff_multiplier", "3s");
        let off = builder().backoff(crate::backoff::Off);
        assert_eq!(pause(off.clone().options(&five)), Duration::ZERO);
        assert_eq!(pause(off.options(&multiplied)), Duration::from_secs(6));
    }
}
