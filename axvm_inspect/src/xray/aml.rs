//! AML as readable names: the objects of a DSDT, with the devices' resources taken apart.
//!
//! ```text
//!   10 pkg \_SB_ ...          Scope    --> \_SB
//!     5b 82 pkg V000 ...      Device   -->   V000
//!       08 _HID 0d LNRO0005   Name     -->     _HID  "LNRO0005"     a virtio-mmio device
//!       08 _CRS 11 ...        Buffer   -->     _CRS  memory 0xd0000000, line 5
//!       14 pkg _STA 0 ...     Method   -->     _STA  method, 0 arguments
//! ```
//!
//! Spec: ACPI 6.5, 20 "ACPI Machine Language (AML) Specification"; 6.4 "Resource Data Types for ACPI".
//! Left out: the code of methods; objects that AxVM's tables do not have. What is not known ends the look at its list, and
//! says so.

use super::{Row, hex};

/// How deep objects may lie: AxVM's lie at four.
const MOST_DEPTH: u32 = 16;

/// The objects of the term list `aml`, which begins at address `at`.
pub(super) fn objects(aml: &[u8], at: u64) -> Vec<Row> {
    terms(Bytes { all: aml, next: 0, base: at }, MOST_DEPTH)
}

/// Bytes that are read from the front.
#[derive(Clone, Copy)]
struct Bytes<'a> {
    all: &'a [u8],
    next: usize,
    /// Address of the first.
    base: u64,
}

impl<'a> Bytes<'a> {
    fn at(&self) -> u64 {
        self.base + self.next as u64
    }

    fn rest(&self) -> &'a [u8] {
        self.all.get(self.next..).unwrap_or_default()
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let taken = self.rest().get(..len)?;
        self.next += len;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    fn number(&mut self, len: usize) -> Option<u64> {
        Some(self.take(len)?.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    /// 20.2.4 "Package Length Encoding": what it spans, from behind it on.
    fn package(&mut self) -> Option<Bytes<'a>> {
        let start = self.next;
        let lead = self.byte()?;
        let more = usize::from(lead >> 6);
        let len = match more {
            0 => usize::from(lead & 0x3f),
            _ => (self.number(more)? as usize) << 4 | usize::from(lead & 0xf),
        };
        let inside = len.checked_sub(self.next - start)?;
        let base = self.at();
        Some(Bytes { all: self.take(inside)?, next: 0, base })
    }

    /// 20.2.2 "Name Objects Encoding", as iasl writes it: without the underscores that fill a name up.
    fn name(&mut self) -> Option<String> {
        let mut text = String::new();
        while let Some(prefix @ (b'\\' | b'^')) = self.rest().first() {
            text.push(char::from(*prefix));
            self.next += 1;
        }
        let count = match *self.rest().first()? {
            0 => {
                self.next += 1;
                return Some(text);
            }
            0x2e => {
                self.next += 1;
                2
            }
            0x2f => {
                self.next += 1;
                usize::from(self.byte()?)
            }
            _ => 1,
        };
        for n in 0..count {
            let part = self.take(4)?;
            if !part.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_') {
                return None;
            }
            let part = String::from_utf8_lossy(part);
            let short = part.trim_end_matches('_');
            text += if n == 0 { "" } else { "." };
            text += if short.is_empty() { "_" } else { short };
        }
        Some(text)
    }
}

fn terms(mut list: Bytes, depth: u32) -> Vec<Row> {
    let mut rows = Vec::new();
    while !list.rest().is_empty() {
        let start = list;
        match depth.checked_sub(1).and_then(|depth| term(&mut list, depth)) {
            Some(row) => rows.push(Row { len: Some((list.next - start.next) as u64), ..row.at(start.at()) }),
            None => {
                let row = Row::new("not decoded").at(start.at()).len(start.rest().len() as u64);
                rows.push(row.bytes(start.rest()));
                break;
            }
        }
    }
    rows
}

fn term(list: &mut Bytes, depth: u32) -> Option<Row> {
    match list.byte()? {
        0x08 => {
            let name = list.name()?;
            let data = data(list, depth)?;
            Some(named(&name, &data))
        }
        0x10 => {
            let mut scope = list.package()?;
            let name = scope.name()?;
            Some(Row::new(name).means("scope").rows(terms(scope, depth)))
        }
        0x14 => {
            let mut method = list.package()?;
            let (name, flags) = (method.name()?, method.byte()?);
            let plural = if flags & 7 == 1 { "" } else { "s" };
            let code = format!("method, {} argument{plural}, {} bytes of code", flags & 7, method.rest().len());
            let means = name_means(&name).map_or(code.clone(), |means| format!("{means}: {code}"));
            Some(Row::new(name).means(means))
        }
        0x5b => match list.byte()? {
            0x80 => {
                let (name, space) = (list.name()?, list.byte()?);
                let (Data::Number(offset), Data::Number(len)) = (data(list, depth)?, data(list, depth)?) else {
                    return None;
                };
                let space = match space {
                    0 => "memory",
                    1 => "ports",
                    2 => "PCI configuration space",
                    _ => "another space",
                };
                Some(Row::new(name).means(format!("region: {len} bytes of {space} at {offset:#x}")))
            }
            0x81 => {
                let mut field = list.package()?;
                let (name, _flags) = (field.name()?, field.byte()?);
                Some(Row::new(name).means("fields of this region").rows(fields(field)))
            }
            0x82 => {
                let mut device = list.package()?;
                let name = device.name()?;
                let rows = terms(device, depth);
                let id = rows.iter().find(|row| row.name == "_HID").and_then(|row| row.means.split(": ").nth(1));
                let means = id.map_or("device".into(), |id| format!("device: {id}"));
                Some(Row::new(name).means(means).rows(rows))
            }
            _ => None,
        },
        _ => None,
    }
}

/// Named fields of a region, by their bits.
fn fields(mut list: Bytes) -> Vec<Row> {
    let (mut rows, mut bit) = (Vec::new(), 0_u64);
    while let Some(&first) = list.rest().first() {
        let name = match first {
            0 => {
                list.next += 1;
                None
            }
            _ => match list.name() {
                Some(name) => Some(name),
                None => break,
            },
        };
        // A length in bits, in the same encoding, that spans nothing here.
        let Some(lead) = list.byte() else { break };
        let Some(more) = list.number(usize::from(lead >> 6)) else { break };
        let len = if lead >> 6 == 0 { u64::from(lead & 0x3f) } else { more << 4 | u64::from(lead & 0xf) };
        rows.extend(name.map(|name| Row::new(name).means(format!("bits {bit} to {}", bit + len.max(1) - 1))));
        bit += len;
    }
    rows
}

/// What a name holds.
enum Data<'a> {
    Number(u64),
    Text(String),
    Buffer(&'a [u8], u64),
    Package(Vec<Data<'a>>),
}

fn data<'a>(list: &mut Bytes<'a>, depth: u32) -> Option<Data<'a>> {
    let depth = depth.checked_sub(1)?;
    Some(match list.byte()? {
        0x00 => Data::Number(0),
        0x01 => Data::Number(1),
        0xff => Data::Number(u64::MAX),
        0x0a => Data::Number(list.number(1)?),
        0x0b => Data::Number(list.number(2)?),
        0x0c => Data::Number(list.number(4)?),
        0x0e => Data::Number(list.number(8)?),
        0x0d => {
            let len = list.rest().iter().position(|byte| *byte == 0)?;
            let text = list.take(len + 1)?.get(..len)?;
            Data::Text(String::from_utf8_lossy(text).into_owned())
        }
        0x11 => {
            let mut buffer = list.package()?;
            let Data::Number(_) = data(&mut buffer, depth)? else { return None };
            Data::Buffer(buffer.rest(), buffer.at())
        }
        0x12 => {
            let mut package = list.package()?;
            let count = package.byte()?;
            Data::Package((0..count).map(|_| data(&mut package, depth)).collect::<Option<_>>()?)
        }
        _ => return None,
    })
}

/// `Name (name, data)`
fn named(name: &str, data: &Data) -> Row {
    let row = Row::new(name);
    let means = name_means(name).unwrap_or_default();
    let id = |id: &str| id_means(id).map_or(means.to_owned(), |device| format!("{means}: {device}"));
    match (name, data) {
        ("_HID" | "_CID", Data::Number(number)) => {
            let text = eisa(*number as u32);
            row.text(&text).means(id(&text))
        }
        (_, Data::Text(text)) => row.text(format!("\"{text}\"")).means(id(text)),
        ("_ADR", Data::Number(address)) => {
            row.value(*address).means(format!("{means}: device {}, function {}", address >> 16, address & 0xffff))
        }
        (_, Data::Number(number)) => row.value(*number).means(means),
        ("_CRS", Data::Buffer(bytes, at)) => row.means(means).rows(resources(bytes, *at)),
        (_, Data::Buffer(bytes, _)) => row.text(hex(bytes)).means(means),
        (_, Data::Package(parts)) => row.text(package(parts)).means(means),
    }
}

fn package(parts: &[Data]) -> String {
    let words = parts.iter().map(|part| match part {
        Data::Number(number) => format!("{number:#x}"),
        Data::Text(text) => format!("\"{text}\""),
        Data::Buffer(bytes, _) => hex(bytes),
        Data::Package(parts) => package(parts),
    });
    format!("{{ {} }}", words.collect::<Vec<_>>().join(", "))
}

/// 19.3.4 "ASL Macros", EISAID: three letters in 15 bits, four digits.
fn eisa(number: u32) -> String {
    let [a, b, c, d] = number.to_le_bytes();
    let letters = u16::from_be_bytes([a, b]);
    let letter = |shift: u32| char::from(b'@' + (letters >> shift & 0x1f) as u8);
    format!("{}{}{}{c:02X}{d:02X}", letter(10), letter(5), letter(0))
}

/// What a name with an underscore is for (ACPI 6.5, 5.6.8).
fn name_means(name: &str) -> Option<&'static str> {
    Some(match name {
        "_HID" => "hardware id",
        "_CID" => "compatible id",
        "_UID" => "unique among those of its id",
        "_STA" => "status: present, enabled, shown, working",
        "_CRS" => "resources",
        "_ADR" => "address on its bus",
        "_SUN" => "number of the slot",
        "_EJ0" => "lets go of the device",
        "_SEG" => "PCI segment",
        "_BBN" => "first bus",
        "_EVT" => "called at an event, with its line",
        "\\_S5" | "_S5" => "what to write to PM1a control to turn the machine off",
        "HPEV" => "finds what came and what is to go",
        _ => return None,
    })
}

/// What a hardware id is.
fn id_means(id: &str) -> Option<&'static str> {
    Some(match id {
        "ACPI0007" => "a processor",
        "ACPI0013" => "events by interrupts of their own",
        "LNRO0005" => "a virtio-mmio device",
        "PNP0501" => "a 16550A serial port",
        "PNP0A03" => "a root of PCI",
        "PNP0A06" => "resources of another device",
        "PNP0A08" => "a root of PCI Express",
        "PNP0B00" => "a real-time clock",
        "PNP0C02" => "what no driver may have",
        "QEMU0001" => "pvpanic: the kernel tells of its panic",
        _ => return None,
    })
}

/// 6.4.2, 6.4.3: small and large resource data types.
fn resources(bytes: &[u8], at: u64) -> Vec<Row> {
    let mut list = Bytes { all: bytes, next: 0, base: at };
    let mut rows = Vec::new();
    while let Some(row) = resource(&mut list) {
        let is_end = row.name == "end";
        if !is_end {
            rows.push(row);
        } else {
            break;
        }
    }
    rows
}

fn resource(list: &mut Bytes) -> Option<Row> {
    let at = list.at();
    let tag = list.byte()?;
    let (kind, len) = match tag & 0x80 {
        0 => (tag >> 3, u64::from(tag & 7)),
        _ => (tag, list.number(2)?),
    };
    let mut body = Bytes { all: list.take(len as usize)?, next: 0, base: at };
    let row = match kind {
        0x0f => Row::new("end"),
        0x08 => {
            body.take(1)?;
            let (first, _, _, count) = (body.number(2)?, body.number(2)?, body.byte()?, u64::from(body.byte()?));
            Row::new("ports").value(first).means(format!("{first:#x}..{:#x}", first + count))
        }
        0x86 => {
            body.take(1)?;
            let (base, len) = (body.number(4)?, body.number(4)?);
            Row::new("memory").value(base).means(format!("{base:#x}..{:#x}", base + len))
        }
        0x89 => {
            let (flags, count) = (body.byte()?, body.byte()?);
            let lines = (0..count).map(|_| body.number(4)).collect::<Option<Vec<_>>>()?;
            let trigger = if flags & 2 != 0 { "edge" } else { "level" };
            let polarity = if flags & 4 != 0 { "low" } else { "high" };
            let lines: Vec<String> = lines.iter().map(u64::to_string).collect();
            Row::new("interrupt").text(lines.join(", ")).means(format!("{trigger}, active {polarity}"))
        }
        0x87 | 0x88 | 0x8a => {
            let width = [4, 2, 0, 8][usize::from(kind - 0x87)];
            let space = body.byte()?;
            body.take(2 + width)?;
            let (first, last) = (body.number(width)?, body.number(width)?);
            let space = match space {
                0 => "memory window",
                1 => "port window",
                2 => "bus numbers",
                _ => "window",
            };
            Row::new(space).value(first).means(format!("{first:#x} to {last:#x}"))
        }
        _ => Row::new("another resource").value(kind.into()),
    };
    Some(row.at(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_letters_and_digits() {
        assert_eq!((eisa(0x0105_d041), eisa(0x080a_d041)), ("PNP0501".into(), "PNP0A08".into()));
    }

    #[test]
    fn whatever_the_bytes_are_they_end() {
        for seed in 0..=255_u8 {
            for len in 0..64 {
                let bytes: Vec<u8> = (0..len).map(|n: u8| seed.wrapping_mul(n | 1) ^ n).collect();
                let rows = objects(&bytes, u64::MAX - 64);
                assert!(len == 0 || !rows.is_empty());
            }
        }
        let deep = [0x12, 0x3f, 1].repeat(20);
        assert_eq!(objects(&[&[8, b'A', b'B', b'C', b'D'][..], &deep].concat(), 0)[0].name, "not decoded");
    }
}
