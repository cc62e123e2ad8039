use proptest::prelude::*;

use super::*;

fn place() -> impl Strategy<Value = Place> {
    let address =
        (any::<u32>(), any::<u8>(), 0u8..32, 0u8..8).prop_map(|(domain, bus, device, function)| {
            PciAddress::new(domain, bus, device, function).expect("in range")
        });
    let bytes = || prop::collection::vec(any::<u8>(), 0..20).prop_map(|bytes| Name::new(&bytes));
    prop_oneof![
        address.clone().prop_map(Place::Function),
        (address, any::<u32>()).prop_map(|(address, number)| Place::Subfunction(address, number)),
        Just(Place::Virtual),
        (bytes(), bytes()).prop_map(|(bus, name)| Place::On(bus, name)),
    ]
}

fn expectation() -> impl Strategy<Value = Expectation> {
    let number = (0u32..1 << 12, 0u32..1 << 20);
    let guid = proptest::option::of(any::<u64>().prop_map(Guid));
    let instance = proptest::option::of((any::<u64>(), any::<u128>().prop_map(BootId)));
    (place(), any::<u32>(), number, guid, instance).prop_map(
        |(place, uverbs_number, number, guid, instance)| Expectation {
            place,
            uverbs_number,
            device_number: number.into(),
            guid,
            instance,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn it_comes_back_as_one_plain_word(expectation in expectation()) {
        let text = expectation.to_string();
        prop_assert!(text.bytes().all(|byte| is_plain(byte) || b",=%".contains(&byte)), "{}", text);
        prop_assert_eq!(text.parse(), Ok(expectation));
    }

    #[test]
    fn two_differ_in_their_texts(a in expectation(), b in expectation()) {
        prop_assert_eq!(a == b, a.to_string() == b.to_string());
    }

    #[test]
    fn what_is_parsed_is_what_was_written(
        text in r"v1(,(pci|sf|bus|name|uverbs|dev_t|inode|boot|x)=[0-9a-z:.%-]{0,12}){0,5}"
    ) {
        // In the order of the fields, a text is the only one of its expectation, but for case and leading zeros.
        if let Ok(parsed) = text.parse::<Expectation>() {
            let again: Expectation = parsed.to_string().parse().expect("parsed again");
            prop_assert_eq!(again, parsed);
        }
    }

    #[test]
    fn any_bytes_are_an_error_that_prints_escaped(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        if let Err(error) = Expectation::from_bytes(&bytes) {
            prop_assert!(error.to_string().bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        }
    }

    #[test]
    fn boot_ids_come_back(id: u128) {
        prop_assert_eq!(BootId(id).to_string().parse(), Ok(BootId(id)));
    }
}

const PLAIN: &str = "v1,pci=0000:3b:00.2,uverbs=19,dev_t=231:211";
const BOOT: &str = "6c2ff2ab-8a4e-4b0c-8d5c-02b7a4fb0d3c";

fn why(text: &str) -> &'static str {
    text.parse::<Expectation>().expect_err(text).why
}

#[test]
fn texts_of_the_documentation() {
    for text in [
        PLAIN,
        "v1,pci=0000:3b:00.0,sf=88,uverbs=3,dev_t=231:195,guid=0002:c903:0005:1234",
        &format!("v1,bus=virtual,uverbs=0,dev_t=231:192,inode=14540,boot={BOOT}"),
        "v1,bus=platform,name=HISI00D1:00,uverbs=0,dev_t=231:192",
        "v1,bus=auxiliary,name=a%20b%25.0,uverbs=0,dev_t=231:192",
    ] {
        let expectation: Expectation = text.parse().expect(text);
        assert_eq!(expectation.to_string(), text);
    }
}

/// An unknown field may be a check, so it is never stepped over.
#[test]
fn it_is_parsed_strictly() {
    assert_eq!(why(&format!("{PLAIN},serial=1")), "a field is not known here, or is there twice");
    assert_eq!(why(&format!("{PLAIN},uverbs=19")), "a field is not known here, or is there twice");
    assert!(why(&PLAIN.replace("v1", "v2")).contains("another version"));
    assert_eq!(why(&format!("{PLAIN},inode=1")), "inode and boot go together");
    assert_eq!(why(&format!("{PLAIN},boot={BOOT}")), "inode and boot go together");
    assert_eq!(why("v1,pci=0000:3b:00.2,uverbs=19"), "it has no dev_t=");
    assert_eq!(why("v1,pci=0000:3b:00.2,dev_t=231:211"), "it has no uverbs=");
    assert_eq!(why(&format!("{PLAIN},bus=pci,name=a")), why("v1,uverbs=1,dev_t=1:1"));
    assert_eq!(why("v1,sf=1,uverbs=1,dev_t=1:1"), why("v1,bus=pci,uverbs=1,dev_t=1:1"));
    assert_eq!(why(&format!("{PLAIN},")), "a field has no value");
    assert_eq!(why(&" ".repeat(TEXT_MAX + 1)), "it is too long");
    for text in [
        PLAIN.replace("19", "019"),
        PLAIN.replace("19", "-1"),
        PLAIN.replace("231", "4096"),
        PLAIN.replace("0000:", ""),
        format!("{PLAIN},inode=+1,boot={BOOT}"),
        format!("{PLAIN},inode=1,boot={}", BOOT.to_uppercase()),
        format!("{PLAIN},guid=1"),
        format!("{PLAIN} "),
        format!("{PLAIN}\n"),
        "v1,bus=a b,name=c,uverbs=1,dev_t=1:1".to_owned(),
        "v1,bus=a%4,name=c,uverbs=1,dev_t=1:1".to_owned(),
        "v1,bus=a%+4,name=c,uverbs=1,dev_t=1:1".to_owned(),
        String::new(),
    ] {
        text.parse::<Expectation>().expect_err(&text);
    }
}

#[test]
fn variables_are_found_by_their_beginning() {
    let variables = |pairs: &[(&str, &str)]| {
        let pairs = pairs.iter().map(|(name, text)| (OsString::from(name), OsString::from(text)));
        Expectation::from_variables(pairs.collect::<Vec<_>>())
    };
    let found = variables(&[("PATH", "/bin"), ("UVERBS_EXPECT_19", PLAIN), ("UVERBS", "")]);
    let found = found.expect("parsed");
    assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), [PLAIN]);
    assert_eq!(found[0].variable(), "UVERBS_EXPECT_19");
    assert_eq!(variables(&[("PATH", "/bin")]), Ok(vec![]));
    variables(&[("UVERBS_EXPECT_19", "x")]).expect_err("no expectation");
}

#[test]
fn both_sides_are_printed_as_far_as_they_differ() {
    let expected: Expectation = PLAIN.parse().expect("parsed");
    let found = "v1,pci=0000:3b:00.0,sf=3,uverbs=19,dev_t=231:211".parse().expect("parsed");
    assert_eq!(
        expected.difference(&found),
        "expected pci 0000:3b:00.2; found pci 0000:3b:00.0, sf 3"
    );
}
