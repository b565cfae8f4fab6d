//! The name in a certificate, which nsqd passes on to the auth server.

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_ID: u8 = 0x06;
const VERSION: u8 = 0xa0;
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

const UTF8_STRING: u8 = 0x0c;
const NUMERIC_STRING: u8 = 0x12;
const PRINTABLE_STRING: u8 = 0x13;
const TELETEX_STRING: u8 = 0x14;
const IA5_STRING: u8 = 0x16;
const BMP_STRING: u8 = 0x1e;

/// The common name of the certificate's subject, the last if it has several; empty if it has none or cannot be read.
pub(super) fn common_name(certificate: &[u8]) -> String {
    find_common_name(certificate).unwrap_or_default()
}

fn find_common_name(certificate: &[u8]) -> Option<String> {
    let mut content = Der(Der(certificate).expect(SEQUENCE)?);
    let mut fields = Der(content.expect(SEQUENCE)?);
    if fields.0.first() == Some(&VERSION) {
        fields.next()?;
    }
    // Serial number, signature algorithm, issuer, validity.
    for _ in 0..4 {
        fields.next()?;
    }
    let mut name = None;
    let mut subject = Der(fields.expect(SEQUENCE)?);
    while let Some(mut attributes) = subject.expect(SET).map(Der) {
        while let Some(mut attribute) = attributes.expect(SEQUENCE).map(Der) {
            if attribute.expect(OBJECT_ID)? == COMMON_NAME {
                let (kind, value) = attribute.next()?;
                name = text(kind, value).or(name);
            }
        }
    }
    name
}

fn text(kind: u8, value: &[u8]) -> Option<String> {
    match kind {
        UTF8_STRING | NUMERIC_STRING | PRINTABLE_STRING | IA5_STRING => String::from_utf8(value.to_vec()).ok(),
        TELETEX_STRING => Some(value.iter().copied().map(char::from).collect()),
        BMP_STRING => {
            let units: Vec<u16> = (value.chunks_exact(2))
                .map(|unit| u16::from_be_bytes([unit[0], unit[1]]))
                .collect();
            String::from_utf16(&units).ok()
        }
        _ => None,
    }
}

/// A reader of DER elements, one after the other.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next element's content if it has this tag.
    fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next()
            .filter(|(found, _)| *found == tag)
            .map(|(_, content)| content)
    }

    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&len, rest) = rest.split_first()?;
        let (len, rest) = match len {
            ..=0x7f => (usize::from(len), rest),
            // A certificate's length fits three bytes: no TLS message is longer.
            0x81..=0x83 => {
                let (digits, rest) = rest.split_at_checked(usize::from(len - 0x80))?;
                let len = digits.iter().fold(0, |len, digit| len << 8 | usize::from(*digit));
                (len, rest)
            }
            0x80 | 0x84.. => return None,
        };
        let (content, rest) = rest.split_at_checked(len)?;
        self.0 = rest;
        Some((tag, content))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::string::BmpString;
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair};

    use super::*;

    fn certificate(attributes: Vec<(DnType, DnValue)>) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in attributes {
            params.distinguished_name.push(kind, value);
        }
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn the_subjects_common_name_is_found() {
        let organization = (DnType::OrganizationName, "NSQ".into());
        let named = |value| certificate(vec![organization.clone(), (DnType::CommonName, value)]);
        assert_eq!(common_name(&named("müller".into())), "müller");
        let printable = "bob".try_into().unwrap();
        assert_eq!(common_name(&named(DnValue::PrintableString(printable))), "bob");
        let wide = BmpString::try_from("żółw").unwrap();
        assert_eq!(common_name(&named(DnValue::BmpString(wide))), "żółw");
        assert_eq!(common_name(&certificate(vec![organization])), "");
    }

    #[test]
    fn half_a_certificate_is_no_trouble() {
        let whole = certificate(vec![(DnType::CommonName, "bob".into())]);
        for len in 0..whole.len() {
            assert_eq!(common_name(&whole[..len]), "");
        }
    }

    proptest! {
        #[test]
        fn a_damaged_certificate_is_no_trouble(position in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut damaged = certificate(vec![(DnType::CommonName, "bob".into())]);
            let len = damaged.len();
            damaged[position.index(len)] = byte;
            common_name(&damaged);
        }

        #[test]
        fn garbage_is_no_trouble(garbage in prop::collection::vec(any::<u8>(), 0..100)) {
            common_name(&garbage);
        }
    }
}
