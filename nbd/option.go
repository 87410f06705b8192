package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
)

// errMalformed is what option parsers return; the option is then answered
// NBD_REP_ERR_INVALID and the stream stays in step.
var errMalformed = errors.New("option data is malformed")

// optionHeader is the fixed part of an option, decoded.
type optionHeader struct {
	magic  uint64
	option option
	length uint32
}

func parseOptionHeader(b []byte) optionHeader {
	_ = b[optionHeaderLen-1]
	return optionHeader{
		magic:  binary.BigEndian.Uint64(b),
		option: option(binary.BigEndian.Uint32(b[8:])),
		length: binary.BigEndian.Uint32(b[12:]),
	}
}

func appendOption(b []byte, o option, data []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, magicOption)
	b = binary.BigEndian.AppendUint32(b, uint32(o))
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

func appendOptionReply(b []byte, o option, t replyType, data []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, magicReply)
	b = binary.BigEndian.AppendUint32(b, uint32(o))
	b = binary.BigEndian.AppendUint32(b, uint32(t))
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// selection is the data of NBD_OPT_GO and NBD_OPT_INFO.
type selection struct {
	name  string
	infos []uint16
}

// parseSelection accepts exactly: name length, name, number of information
// requests, the requests. Lengths that do not add up are malformed.
func parseSelection(b []byte) (selection, error) {
	if len(b) < 6 {
		return selection{}, errMalformed
	}
	nameLen := uint64(binary.BigEndian.Uint32(b))
	if nameLen > NameBytesMax || nameLen+6 > uint64(len(b)) {
		return selection{}, errMalformed
	}
	name, rest := b[4:4+nameLen], b[4+nameLen:]
	count := int(binary.BigEndian.Uint16(rest))
	if rest = rest[2:]; len(rest) != 2*count || !validName(name) {
		return selection{}, errMalformed
	}
	s := selection{name: string(name), infos: make([]uint16, count)}
	for i := range s.infos {
		s.infos[i] = binary.BigEndian.Uint16(rest[2*i:])
	}
	return s, nil
}

func (s selection) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s.name)))
	b = append(b, s.name...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(s.infos)))
	for _, info := range s.infos {
		b = binary.BigEndian.AppendUint16(b, info)
	}
	return b
}

func validName(name []byte) bool {
	return len(name) <= NameBytesMax && bytes.IndexByte(name, 0) < 0
}

func appendExportInfo(b []byte, size uint64, flags TransmissionFlags) []byte {
	b = binary.BigEndian.AppendUint16(b, infoExport)
	b = binary.BigEndian.AppendUint64(b, size)
	return binary.BigEndian.AppendUint16(b, uint16(flags))
}

func appendTextInfo(b []byte, info uint16, text string) []byte {
	return append(binary.BigEndian.AppendUint16(b, info), text[:min(len(text), NameBytesMax)]...)
}

func appendBlockSizeInfo(b []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, infoBlockSize)
	b = binary.BigEndian.AppendUint32(b, BlockSizeMin)
	b = binary.BigEndian.AppendUint32(b, BlockSizePreferred)
	return binary.BigEndian.AppendUint32(b, BlockSizeMax)
}

func appendServerReply(b []byte, name, description string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(name)))
	b = append(b, name...)
	return append(b, description[:min(len(description), NameBytesMax)]...)
}
