package availability

import (
	"context"
	"errors"
	"testing"
	"testing/fstest"
	"time"
)

func at(t *testing.T, text string) time.Time {
	t.Helper()
	when, err := time.ParseInLocation("Mon 2006-01-02 15:04", text, time.Local)
	if err != nil {
		t.Fatal(err)
	}
	return when
}

func nothing(context.Context, string, ...string) ([]byte, error) {
	return nil, errors.New("no such program")
}

func TestTheOwnersHoursKeepTheNodeOut(t *testing.T) {
	for _, tc := range []struct {
		hours, now string
		out        bool
	}{
		{"09:00-17:30", "Tue 2026-11-24 09:00", true},
		{"09:00-17:30", "Tue 2026-11-24 17:29", true},
		{"09:00-17:30", "Tue 2026-11-24 17:30", false},
		{"09:00-17:30", "Tue 2026-11-24 08:59", false},
		{"22:00-06:00", "Tue 2026-11-24 23:00", true},
		{"22:00-06:00", "Tue 2026-11-24 05:59", true},
		{"22:00-06:00", "Tue 2026-11-24 12:00", false},
		{"Mon-Fri 09:00-17:00", "Sat 2026-11-28 10:00", false},
		{"Mon-Fri 09:00-17:00", "Fri 2026-11-27 10:00", true},
		{"Fri 22:00-06:00", "Sat 2026-11-28 05:00", true},
		{"Fri 22:00-06:00", "Fri 2026-11-27 05:00", false},
		{"sat-sun 00:00-23:59", "Sun 2026-11-29 12:00", true},
		{"sat-sun 00:00-23:59", "Mon 2026-11-30 12:00", false},
	} {
		w := New(Config{NotDuring: []string{tc.hours}}, Machine{Sys: fstest.MapFS{}, Output: nothing})
		if why := w.Look(t.Context(), at(t, tc.now), false); (why != "") != tc.out {
			t.Errorf("%s at %s: %q", tc.hours, tc.now, why)
		}
	}
	for _, bad := range []string{"", "9-17", "09:00", "09:00-09:00", "Foo 09:00-10:00", "Mon-Xyz 09:00-10:00", "25:00-26:00"} {
		if err := (Config{NotDuring: []string{bad}}).Validate(); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestABatteryKeepsTheNodeOutOnlyWithoutMains(t *testing.T) {
	supply := func(kind, field, value string) fstest.MapFS {
		return fstest.MapFS{"type": {Data: []byte(kind + "\n")}, field: {Data: []byte(value + "\n")}}
	}
	machine := func(supplies map[string]fstest.MapFS) Machine {
		sys := fstest.MapFS{"class/power_supply/none": {Mode: 0o755}}
		for name, files := range supplies {
			for file, f := range files {
				sys["class/power_supply/"+name+"/"+file] = f
			}
		}
		return Machine{Sys: sys, Output: nothing}
	}
	mouse := supply("Battery", "status", "Discharging")
	mouse["scope"] = &fstest.MapFile{Data: []byte("Device\n")}
	for name, tc := range map[string]struct {
		machine Machine
		out     bool
	}{
		"discharging":           {machine(map[string]fstest.MapFS{"BAT0": supply("Battery", "status", "Discharging")}), true},
		"charging":              {machine(map[string]fstest.MapFS{"BAT0": supply("Battery", "status", "Charging")}), false},
		"mains is there":        {machine(map[string]fstest.MapFS{"BAT0": supply("Battery", "status", "Discharging"), "AC": supply("Mains", "online", "1")}), false},
		"mains is pulled":       {machine(map[string]fstest.MapFS{"BAT0": supply("Battery", "status", "Discharging"), "AC": supply("Mains", "online", "0")}), true},
		"a mouse's":             {machine(map[string]fstest.MapFS{"mouse": mouse}), false},
		"no battery":            {machine(nil), false},
		"a machine of no kind":  {Machine{Sys: fstest.MapFS{}, Output: nothing}, false},
		"a Mac on battery":      {Machine{Sys: fstest.MapFS{}, Output: says("Now drawing from 'Battery Power'\n")}, true},
		"a Mac on mains supply": {Machine{Sys: fstest.MapFS{}, Output: says("Now drawing from 'AC Power'\n")}, false},
	} {
		if why := New(Config{NotOnBattery: true}, tc.machine).Look(t.Context(), time.Now(), false); (why != "") != tc.out {
			t.Errorf("%s: %q", name, why)
		}
	}
}

func says(text string) func(context.Context, string, ...string) ([]byte, error) {
	return func(context.Context, string, ...string) ([]byte, error) { return []byte(text), nil }
}

func TestAGPUThatIsBusyWithSomethingElseKeepsTheNodeOut(t *testing.T) {
	now := "0"
	w := New(Config{NotAboveGPUPercent: 30}, Machine{Sys: fstest.MapFS{}, Output: func(context.Context, string, ...string) ([]byte, error) {
		return []byte("3\n" + now + "\n"), nil
	}})
	for i, step := range []struct {
		percent    string
		engineBusy bool
		out        bool
	}{
		{"90", true, false}, {"90", true, false}, // its own work
		{"90", false, false}, {"90", false, true}, // somebody's
		{"5", false, true}, {"5", false, false}, // a moment's rest does not count
		{"90", false, false}, {"5", false, false}, {"90", false, false},
	} {
		now = step.percent
		if why := w.Look(t.Context(), time.Now(), step.engineBusy); (why != "") != step.out {
			t.Errorf("step %d: %q", i, why)
		}
	}
	amd := fstest.MapFS{"class/drm/card0/device/gpu_busy_percent": {Data: []byte("77\n")}}
	w = New(Config{NotAboveGPUPercent: 50}, Machine{Sys: amd, Output: nothing})
	w.Look(t.Context(), time.Now(), false)
	if why := w.Look(t.Context(), time.Now(), false); why == "" {
		t.Error("AMD's driver was not asked")
	}
	w = New(Config{NotAboveGPUPercent: 1}, Machine{Sys: fstest.MapFS{}, Output: nothing})
	w.Look(t.Context(), time.Now(), false)
	if why := w.Look(t.Context(), time.Now(), false); why != "" {
		t.Errorf("a machine without a GPU: %q", why)
	}
}
