// Which source pixels an output pixel meets: what all kernels of convolution begin with.
//
// Along one axis, output element  h = phase + i * stride  meets tap r at the source element  i * step + offset(r),
//
//     offset(r) = (phase + origin + r * spread) / stride,      for the taps r for which that is a whole number.
//
// Forward, `stride` is 1: every tap is met, `step` is the stride of the convolution, spread its dilation, and the
// origin minus its padding. In the gradient of the data the source is dy, and `stride` the stride of the
// convolution: the rows h = phase, phase + stride, ... all meet the same taps, with step 1. The other taps would
// multiply the zeros that lie between the elements of dy. See patches.py.

struct Axis {
    int source, out;  // how many elements both have
    int taps, step, stride, origin, spread;
};

DEVICE int phases_of(const Axis &axis) { return min(axis.stride, axis.out); }

DEVICE int count_of_phase(const Axis &axis, int phase) {
    return (axis.out - phase + axis.stride - 1) / axis.stride;  // elements i
}

// The taps that a phase meets, r = first + k * apart for k = 0 .. count - 1, and the offset of each, offset + k *
// pace.
struct Taps {
    int first, apart, count;
    int offset, pace;
};

DEVICE int tap_of(const Taps &taps, int k) { return taps.first + k * taps.apart; }

DEVICE int offset_of(const Taps &taps, int k) { return taps.offset + k * taps.pace; }

DEVICE Taps taps_of_phase(const Axis &axis, int phase) {
    Taps taps;
    taps.first = 0;
    while (taps.first < axis.taps && (phase + axis.origin + taps.first * axis.spread) % axis.stride != 0)
        ++taps.first;
    taps.apart = 1;
    while (taps.apart * axis.spread % axis.stride != 0)
        ++taps.apart;
    taps.count = (axis.taps - taps.first + taps.apart - 1) / taps.apart;
    taps.offset = (phase + axis.origin + taps.first * axis.spread) / axis.stride;
    taps.pace = taps.apart * axis.spread / axis.stride;
    return taps;
}

// Leave out taps at both ends that meet no source element, for any i * step from `lowest` to `highest`: those of a
// dilated kernel that is larger than the image fall into the padding for whole blocks of pixels.
DEVICE void leave_out_padding(Taps &taps, int lowest, int highest, int source) {
    while (taps.count > 0 && (highest + taps.offset < 0 || lowest + taps.offset >= source)) {
        taps.first += taps.apart;
        taps.offset += taps.pace;
        --taps.count;
    }
    while (taps.count > 0) {
        int last = offset_of(taps, taps.count - 1);
        if (highest + last >= 0 && lowest + last < source)
            break;
        --taps.count;
    }
}

// A number with three digits: image, row and column of a pixel; or row and column of a tap, and the channel.
// Counting on takes no division. The counts of the lower digits must not be 0.
struct Counter {
    int high, middle, low;
};

DEVICE void advance(Counter &counter, int by, int middle_count, int low_count) {
    counter.low += by;
    while (counter.low >= low_count) {
        counter.low -= low_count;
        if (++counter.middle == middle_count) {
            counter.middle = 0;
            ++counter.high;
        }
    }
}

DEVICE Counter counter_at(int number, int middle_count, int low_count) {
    int rest = number / low_count;
    return {rest / middle_count, rest % middle_count, number % low_count};
}
