//! Options by name, applied to a producer.

use super::builder::ProducerBuilder;
use crate::config::{Options, ProducerValues, put};

impl ProducerBuilder {
    /// Sets what these options say and concerns producers; what is for consumers is ignored. What they do not say stays as
    /// it is: of this and other setters, the later call counts. Default: none.
    ///
    /// So call [`connection`](Self::connection) first: called later, it replaces all of what the options say of the connection.
    /// Where that would drop TLS, it is an error.
    ///
    /// What contradicts itself (`snappy` and `deflate`, TLS that is not asked for) is reported by [`connect`](Self::connect).
    ///
    /// ```
    /// use async_nsq::{Options, Producer};
    ///
    /// # fn main() -> Result<(), async_nsq::Error> {
    /// let options = Options::from_vars("NSQ_", [("NSQ_PUBLISH_TIMEOUT", "5s"), ("NSQ_CLIENT_ID", "billing-7")])?;
    /// let builder = Producer::builder().nsqd("127.0.0.1:4150").options(&options);
    /// # let _ = builder;
    /// # Ok(())
    /// # }
    /// ```
    pub fn options(mut self, options: &Options) -> Self {
        let values = options.values();
        self.connection.apply(&values);
        self.discovery.apply(&values.discovery);
        self.apply(&values.producer);
        self
    }

    fn apply(&mut self, given: &ProducerValues) {
        put(&mut self.publish_timeout, &given.publish_timeout);
        put(&mut self.max_pending_messages, &given.max_pending_messages);
        put(&mut self.max_pending_bytes, &given.max_pending_bytes);
        put(&mut self.max_body_size, &given.max_body_size);
        put(&mut self.max_req_timeout, &given.max_req_timeout);
        put(&mut self.batching, &given.batching);
        put(&mut self.linger, &given.linger);
        put(&mut self.linger_messages, &given.linger_messages);
        put(&mut self.policy.copies.count, &given.copies);
        put(&mut self.policy.copies.quorum, &given.quorum);
        put(&mut self.policy.copies.accept_fewer, &given.accept_fewer_copies);
        put(&mut self.policy.at_least_once, &given.at_least_once);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::options_tests::check_reach;
    use crate::producer::Producer;

    /// All that options can change, as text.
    fn fingerprint(builder: &ProducerBuilder) -> String {
        format!("{} {builder:?}", builder.connection.fingerprint())
    }

    #[test]
    fn each_option_reaches_what_it_concerns_and_defaults_change_nothing() {
        let builder = Producer::builder();
        check_reach(
            "producers",
            &builder,
            |builder, options| builder.options(options),
            fingerprint,
        );
    }
}
