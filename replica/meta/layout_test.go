package meta

import (
	"errors"
	"testing"

	"pgregory.net/rapid"
)

func TestLayoutTable(t *testing.T) {
	internal, flexible := Placement{Kind: Internal}, Placement{Kind: FlexExternal}
	index := func(n uint8) Placement { return Placement{Kind: Indexed, Index: n} }
	for _, row := range []struct {
		name              string
		place             Placement
		device            Sectors
		super, al, bitmap Sectors
		size, usable      Sectors
	}{
		{"24 MiB", internal, 49152, 49144, 49080, 49072, 80, 49072},
		{"64 MiB", internal, 131072, 131064, 131000, 130992, 80, 130992},
		{"1 GiB", internal, 2097152, 2097144, 2097080, 2097016, 136, 2097016},
		{"10 GiB", internal, 20971520, 20971512, 20971448, 20970808, 712, 20970808},
		{"100 GiB", internal, 209715200, 209715192, 209715128, 209708728, 6472, 209708728},
		{"odd", internal, 131077, 131064, 131000, 130992, 80, 130992},
		{"flexible 1 MiB", flexible, 2048, 0, 8, 72, 2048, (2048 - 72) * 32768},
		{"index 0", index(0), 1 << 20, 0, 8, 72, 262144, (262144 - 72) * 32768},
		{"index 2", index(2), 1 << 20, 524288, 524296, 524360, 262144, (262144 - 72) * 32768},
	} {
		l, err := NewLayout(row.place, row.device.Bytes(), DefaultALGeometry)
		if err != nil {
			t.Errorf("%s: %v", row.name, err)
			continue
		}
		usable := l.Usable(1 << 62)
		if l.Super != row.super || l.AL != row.al || l.Bitmap != row.bitmap || l.Size != row.size || usable != row.usable {
			t.Errorf("%s: %+v usable %d, want %+v", row.name, l, usable, row)
		}
	}
}

func TestExternalUsableIsLimitedByData(t *testing.T) {
	l, err := NewLayout(Placement{Kind: FlexExternal}, 1<<20, DefaultALGeometry)
	if err != nil {
		t.Fatal(err)
	}
	if got := l.Usable(10<<30 + 700); got != 20971521 {
		t.Errorf("10 GiB of data and a bit: %d sectors usable", got)
	}
}

func TestTooSmall(t *testing.T) {
	for _, c := range []struct {
		place Placement
		bytes int64
	}{
		{Placement{Kind: Internal}, 0},
		{Placement{Kind: Internal}, 68<<10 - 1},
		{Placement{Kind: FlexExternal}, 4096},
		{Placement{Kind: Indexed}, 128<<20 - 1},
		{Placement{Kind: Indexed, Index: 1}, 128 << 20},
		{Placement{Kind: Indexed, Index: 255}, 1 << 30},
	} {
		if _, err := NewLayout(c.place, c.bytes, DefaultALGeometry); !errors.Is(err, ErrTooSmall) {
			t.Errorf("%v on %d bytes: %v, want ErrTooSmall", c.place, c.bytes, err)
		}
	}
	big := ALGeometry{Stripes: 1, StripeSize: 64}
	if _, err := NewLayout(Placement{Kind: Internal}, 128<<10, big); !errors.Is(err, ErrTooSmall) {
		t.Errorf("log larger than the device: %v", err)
	}
}

func TestBadGeometry(t *testing.T) {
	for _, g := range []ALGeometry{{}, {1, 7}, {1, 8193}, {1 << 31, 1 << 31}, {0, 8}, {1 << 16, 1 << 16}} {
		if _, err := NewLayout(Placement{Kind: Internal}, 1<<30, g); err == nil {
			t.Errorf("%+v was accepted", g)
		}
	}
}

// TestLayoutParts: the parts fill the metadata without overlap, inside the
// device, and the bitmap has a bit for all usable data.
func TestLayoutParts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := Placement{Kind: Kind(rapid.IntRange(0, 2).Draw(t, "kind")), Index: rapid.Uint8Range(0, 3).Draw(t, "index")}
		g := ALGeometry{rapid.Uint32Range(1, 9).Draw(t, "stripes"), rapid.Uint32Range(8, 40).Draw(t, "blocks")}
		size := rapid.Int64Range(1<<20, 1<<46).Draw(t, "bytes")
		l, err := NewLayout(p, size, g)
		if errors.Is(err, ErrTooSmall) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		parts := [][2]Sectors{{l.Super, blockSectors}, {l.AL, g.sectors()}, {l.Bitmap, l.BitmapSize}}
		var sum Sectors
		for i, a := range parts {
			sum += a[1]
			if a[0]%blockSectors != 0 || (a[0]+a[1]).Bytes() > size {
				t.Fatalf("part %d at %d, %d sectors, device of %d bytes", i, a[0], a[1], size)
			}
			for _, b := range parts[i+1:] {
				if a[0] < b[0]+b[1] && b[0] < a[0]+a[1] {
					t.Fatalf("parts overlap: %+v", l)
				}
			}
		}
		usable := l.Usable(size)
		if sum != l.Size || uint64(usable) > uint64(l.BitmapSize)*bitmapSectorData || usable.Bytes() > size {
			t.Fatalf("%+v: parts take %d, usable %d", l, sum, usable)
		}
	})
}

func TestRingPositions(t *testing.T) {
	for _, g := range []ALGeometry{{1, 8}, {2, 8}, {3, 5}, {4, 256}} {
		seen := map[int]bool{}
		for n := range uint32(g.Blocks()) {
			seen[g.position(n+uint32(g.Blocks())*7)] = true
		}
		if len(seen) != g.Blocks() {
			t.Errorf("%+v: %d positions for %d blocks", g, len(seen), g.Blocks())
		}
	}
	if got := DefaultALGeometry.ExtentsMax(); got != 6433 {
		t.Errorf("%d extents on 8 blocks, want 6433", got)
	}
	if got := (ALGeometry{8, 1024}).ExtentsMax(); got != 65534 {
		t.Errorf("%d extents on the largest ring, want 65534", got)
	}
	if got := (ALGeometry{2, 8}).position(3); got != 9 {
		t.Errorf("transaction 3 of 2 stripes of 8 at block %d, want 9", got)
	}
}

func TestMisfit(t *testing.T) {
	const device = 64 << 20
	good := func() Super {
		return Super{
			Size: 80, ALOffset: -64, BMOffset: -72, BytesPerBit: 4096, AL: DefaultALGeometry, ALExtents: 257,
		}
	}
	s := good()
	if _, err := layoutOf(Placement{Kind: Internal}, device, &s); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(s *Super){
		"md_size_sect": func(s *Super) { s.Size = 136 }, "al_offset": func(s *Super) { s.ALOffset = 8 },
		"bm_offset": func(s *Super) { s.BMOffset = -80 }, "bm-byte-per-bit": func(s *Super) { s.BytesPerBit = 8192 },
		"al-stripes times al-stripe-size-4k": func(s *Super) { s.AL.StripeSize = 4 },
	} {
		s := good()
		change(&s)
		_, err := layoutOf(Placement{Kind: Internal}, device, &s)
		var misfit *MisfitError
		if !errors.As(err, &misfit) || misfit.What != what {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestGrownExternalDevice: flexible metadata keeps the size it was made with.
func TestGrownExternalDevice(t *testing.T) {
	s := Super{Size: 2048, ALOffset: 8, BMOffset: 72, BytesPerBit: 4096, AL: DefaultALGeometry}
	l, err := layoutOf(Placement{Kind: FlexExternal}, 4<<20, &s)
	if err != nil || l.Size != 2048 || l.BitmapSize != 2048-72 {
		t.Errorf("%+v, %v", l, err)
	}
	var misfit *MisfitError
	if _, err := layoutOf(Placement{Kind: FlexExternal}, 1<<19, &s); !errors.As(err, &misfit) {
		t.Errorf("shrunk device: %v, want a MisfitError", err)
	}
}
