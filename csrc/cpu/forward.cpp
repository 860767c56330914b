// The forward time loop on the CPU.

#include "time_loop.h"

namespace fused_rnn::cpu {
namespace {

template <typename C, typename S>
class Forward {
 public:
  Forward(const Sequence& q, Save save, bool final_states)
      : q_(q),
        schedule_(q),
        saved_columns_(q.saved_columns(save)),
        unpacked_(leaves_unpacked(schedule_)),
        own_projections_(unpacked_ || kernels<C, S>().weight_bytes < int64_t{sizeof(C)}),
        joint_(joins_products(q, schedule_)),
        modulates_input_(q.cell.modulates == Modulates::input) {
    const int64_t B = q.B, H = q.H;
    const ScalarType type = q.input.scalar_type();
    // (T, B, columns). Past the end of a sequence outputs and cell states are zero; nothing is saved there, but equal
    // calls must give equal bits.
    const auto per_step = [&](int64_t columns) {
      if (!columns) return Tensor();
      return schedule_.whole() ? empty({q.T, B, columns}, type) : zeros(q.T, B, columns, type);
    };
    // each a tensor of its own, because operators must not return views of each other's results
    result_ = {per_step(H), {}, {}, per_step(q.cell.cell_columns(save, H)), per_step(saved_columns_)};
    if (final_states) result_.h_n = empty({B, H}, type);
    if (final_states && q.cell.has_cell_state) result_.c_n = empty({B, H}, type);
    h_ = workspace_.array<C>(2 * B * H);
    load_states(q.h_0, state(0));
    if (!schedule_.whole()) load_states(q.h_0, state(1));  // a sequence may begin with these, too
    if (q.c_0) {
      step_.c = workspace_.array<C>(B * H);
      load_states(*q.c_0, step_.c);
    }
    if (!joint_ && !modulates_input_) w_ = projection(q.weights.weight_ih, q.weights.bias_ih);
    if (q.cell.multiplicative()) w_m_ = projection(*q.weights.weight_mih, q.weights.bias_m);
    make_matrices();
    step_.input_size = q.I;
    step_.hidden_size = H;
    step_.saved_stride = saved_columns_;
    if (q.cell.reset_before) {
      step_.s = workspace_.array<C>(B * H);
      step_.z = workspace_.array<C>(B * H);
    }
    if (q.cell.multiplicative()) step_.x_hat = workspace_.array<C>(B * q.modulated_size());
    if (modulates_input_) {
      if (!joint_) step_.wx = workspace_.array<C>(B * q.cell.gates * H);
      step_.operand = step_.x_hat;
    }
    if (q.resets) around_.before = [this](int64_t s, Range rows) { begin_anew(s, rows); };
  }

  ForwardResult run() {
    for (const Chunk& chunk : schedule_.chunks()) run(chunk);
    if (result_.h_n.defined()) store_final_states();
    return std::move(result_);
  }

 private:
  // Return h before a step.
  C* state(int64_t step) const { return h_ + step % 2 * q_.B * q_.H; }

  void store_final_states() const {
    const int64_t H = q_.H;
    for (int64_t row = 0; row < q_.B; ++row) {
      const int64_t at = schedule_.running(0).at(row), last = q_.reverse ? q_.T : schedule_.length(row);
      store(state(last) + row * H, H, data<S>(result_.h_n) + at * H);
      if (step_.c) store(step_.c + row * H, H, data<S>(result_.c_n) + at * H);
    }
  }

  void load_states(const Tensor& states, C* to) const {
    const int64_t H = q_.H;
    for (int64_t row = 0; row < q_.B; ++row)
      load(const_data<S>(states) + schedule_.running(0).at(row) * H, H, to + row * H);
  }

  // A product of the input with a weight, for all steps of a chunk. The library computes it, except in two cases: if
  // weights are left unpacked, because for few rows our own starts sooner and converts no weights, and for bfloat16 if
  // our own kernels round to it.
  struct Projection {
    Tensor out;           // (rows, columns)
    Matrix<C, S> matrix;  // for our own product
    Tensor weight;        // for the library, (I, columns)
    OptionalTensor bias;
  };

  // The input of a chunk in the form that products read: (rows, I), and as a tensor for the library.
  struct Input {
    const C* values;
    Tensor tensor;
  };

  Projection projection(const Tensor& weight, const OptionalTensor& bias) {
    const Tensor out = workspace_.tensor<C>({schedule_.most_rows(), weight.size(0)});
    if (!own_projections_)
      return {out, {}, transposed(computed<C>(weight)), bias ? OptionalTensor(computed<C>(*bias)) : std::nullopt};
    const MatrixPart<S> part{const_data<S>(weight), q_.I, 1, q_.I};
    return {out, made(1, weight.size(0), data_or_null<S>(bias), nullptr, {part}), {}, {}};
  }

  void project(const Projection& p, const Input& x, int64_t rows, Split split) const {
    if (!own_projections_) {
      const Tensor out = rows_of(p.out, {0, rows});
      return product({out, p.bias ? *p.bias : out, x.tensor, p.weight, p.bias ? 1.0 : 0.0});
    }
    const Kernels<C, S>& k = kernels<C, S>();
    const int64_t panels = k.panel_count(1, p.matrix.units);
    const Product<C, S> product{{x.values, q_.I, q_.I}, p.matrix, nullptr, data<C>(p.out)};
    torch::stable::parallel_for(0, panels, split == Split::none ? panels : share(panels),
                                [&](int64_t begin, int64_t end) { k.multiply(product, {0, rows}, {begin, end}); });
  }

  Input input_of(const Chunk& chunk) const {
    if constexpr (std::is_same_v<C, S>)
      if (schedule_.together(chunk) && (own_projections_ || !(w_ || w_m_)))
        return {const_data<C>(q_.input) + chunk.time * q_.B * q_.I, {}};
    const Tensor rows = computed<C>(rows_at<S>(q_.input, schedule_, chunk));
    return {const_data<C>(rows), rows};
  }

  // Whether x (or x̂) is a second operand of the recurrent product, rather than multiplied with W beforehand. That
  // saves writing and reading W x + b, but has every step read W, which must then be in the cache and serve a few
  // sequences. With unpacked weights it only pays for a single step, which reads W once.
  bool joins_products(const Sequence& q, const Schedule& schedule) const {
    if (unpacked_) return !q.cell.separates_x && schedule.times() == 1;
    constexpr int64_t few = 4;
    const int64_t bytes = q.cell.gates * q.H * (q.H + q.I) * kernels<C, S>().weight_bytes;
    return !q.cell.separates_x && bytes <= cached_bytes &&
           schedule.rows() >= few * torch::stable::get_num_threads() * schedule.times();
  }

  void make_matrices() {
    const int64_t H = q_.H, I = q_.I, G = q_.cell.gates, product_gates = q_.cell.reset_before ? 2 : G;
    const Weights& w = q_.weights;
    const S *U = const_data<S>(w.weight_hh), *W = const_data<S>(w.weight_ih);
    const S *b_hh = data_or_null<S>(w.bias_hh), *b_ih = data_or_null<S>(w.bias_ih);
    const auto recurrent = [&](int64_t first, int64_t gates) {  // rows of U, and of W below it
      const int64_t row = first * H;
      const MatrixPart<S> u{U + row * H, H, 1, H}, w{W + row * I, I, 1, I};
      const S *b = b_hh ? b_hh + row : nullptr, *other = joint_ && b_ih ? b_ih + row : nullptr;
      return joint_ ? made(gates, H, b, other, {u, w}) : made(gates, H, b, nullptr, {u});
    };
    step_.recurrent = recurrent(0, product_gates);
    if (q_.cell.reset_before) step_.candidate = recurrent(2, 1);
    if (q_.cell.multiplicative())
      step_.modulation = made(1, q_.modulated_size(), nullptr, nullptr, {{const_data<S>(*w.weight_mhh), H, 1, H}});
    if (modulates_input_ && !joint_) step_.projection = made(1, G * H, b_ih, nullptr, {{W, I, 1, I}});
  }

  Matrix<C, S> made(int64_t gates, int64_t units, const S* bias, const S* other_bias,
                    std::initializer_list<MatrixPart<S>> parts) {
    return matrix<C, S>(workspace_, unpacked_, gates, units, bias, other_bias, parts);
  }

  void run(const Chunk& chunk) {
    const Input x = input_of(chunk);
    const int64_t most = schedule_.running(chunk.time).count;
    const Split split = choose_split(most, q_.cell.gates * q_.H * q_.H, kernels<C, S>().weight_bytes);
    for (const auto& p : {w_, w_m_})
      if (p) project(*p, x, chunk.rows, split);

    const Kernels<C, S>& k = kernels<C, S>();
    std::vector<PhaseSize<ForwardPhase>> phases;
    const auto add = [&](ForwardPhase phase, const Matrix<C, S>& m) {
      if (m.exists()) phases.push_back({phase, k.panel_count(m.gates, m.units)});
    };
    add(ForwardPhase::modulate, step_.modulation);
    add(ForwardPhase::project, step_.projection);
    add(ForwardPhase::recur, step_.recurrent);
    add(ForwardPhase::candidate, step_.candidate);
    run_steps(
        split, most, chunk.first, chunk.last, phases, [&](int64_t s) { return step_at(s, chunk, x.values); },
        k.cell(q_.cell.id).forward, around_);
  }

  // Overwrite the states of rows that begin anew, which the step before left, with their initial states.
  void begin_anew(int64_t s, Range rows) const {
    const int64_t H = q_.H;
    for_rows_begun(q_, schedule_, s, rows, [&](int64_t row, int64_t at) {
      const auto put = [&](const OptionalTensor& beginning, C* to) {
        if (beginning)
          load(const_data<S>(*beginning) + at * H, H, to + row * H);
        else
          std::fill_n(to + row * H, H, C(0));
      };
      put(q_.h_reset, state(s));
      if (step_.c) put(q_.c_reset, step_.c);
    });
  }

  // x: the input of the chunk
  ForwardStep<C, S> step_at(int64_t s, const Chunk& chunk, const C* x) const {
    const int64_t B = q_.B, H = q_.H, I = q_.I, t = q_.time(s), row = schedule_.first_row(t) - chunk.row;
    ForwardStep<C, S> step = step_;
    step.running = schedule_.running(t);
    if (w_) step.wx = data<C>(w_->out) + row * q_.cell.gates * H;
    if (w_m_) step.wx_m = data<C>(w_m_->out) + row * q_.modulated_size();
    if (modulates_input_)
      step.x = const_data<S>(q_.input) + t * B * I;
    else
      step.operand = x + row * I;
    step.h_prev = state(s);
    step.state = q_.cell.modulates == Modulates::hidden ? step.x_hat : step.h_prev;
    step.h = state(s + 1);
    step.output = data<S>(result_.output) + t * B * H;
    step.cells = result_.cells.defined() ? data<S>(result_.cells) + t * B * H : nullptr;
    step.keep_h = q_.keep_h ? const_data<S>(*q_.keep_h) + t * B * H : nullptr;
    step.keep_c = q_.keep_c ? const_data<S>(*q_.keep_c) + t * B * H : nullptr;
    step.saved = saved_columns_ ? data<S>(result_.saved) + t * B * saved_columns_ : nullptr;
    return step;
  }

  const Sequence& q_;
  const Schedule schedule_;
  Workspace workspace_;
  const int64_t saved_columns_;
  const bool unpacked_, own_projections_, joint_, modulates_input_;
  ForwardResult result_;
  C* h_;                               // (2*B, H): the states before and after a step, in turn
  std::optional<Projection> w_, w_m_;  // W x + b, unless joint or computed from x̂; W_m x + b_m of multiplicative cells
  ForwardStep<C, S> step_{};           // the operands that all steps share
  Around around_;
};

}  // namespace

ForwardResult forward(const Sequence& q, Save save, bool final_states) {
  return dispatch_types(q.input.scalar_type(), [&](auto computed_in, auto stored_as) {
    return Forward<decltype(computed_in), decltype(stored_as)>(q, save, final_states).run();
  });
}

}  // namespace fused_rnn::cpu
