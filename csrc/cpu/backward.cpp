// The backward time loop on the CPU. The steps run in reverse order of computation and write the gradients of all
// pre-activations of a chunk to one matrix; every weight gradient and δx is then one library product per chunk. For few
// rows these are our own products, straight from the caller's tensors into the results, because the overhead of a
// library call exceeds the rest of the work.

#include "time_loop.h"

namespace fused_rnn::cpu {
namespace {

template <typename C, typename S>
class Backward {
 public:
  Backward(const Sequence& q, const BackwardInput& in)
      : q_(q), in_(in), schedule_(q), few_(leaves_unpacked(schedule_)) {
    const int64_t H = q.H, I = q.I, rows = schedule_.most_rows();
    columns_ = q.cell.gradients * H + q.modulated_size();
    d_ = rows_in_memory(rows, columns_, d_tensor_);
    operands_ = rows_in_memory(rows, operand_columns(), operands_tensor_);
    dh_ = gradient_or_zeros(in.d_h_n);
    if (q.cell.has_cell_state) dc_ = gradient_or_zeros(in.d_c_n);
    if (q.cell.reset_before) s_ = workspace_.tensor<C>({rows, H});
    // δx of a chunk needs memory of its own if x is modulated, because steps fill it one by one; in other types than C,
    // because it is converted at the end; and if sequences end early, because the rows of a chunk are scattered then
    if (modulates_input() || !same_type || !schedule_.whole()) dx_ = workspace_.tensor<C>({rows, I});
    if (modulates_hidden()) {
      wx_m_ = workspace_.tensor<C>({rows, H});
      d_wx_m_ = workspace_.tensor<C>({rows, H});
    }
    make_matrices();
    if (!few_) make_factors();
    step_.input_size = I;
    step_.hidden_size = H;
    step_.saved_stride = q.saved_columns(Save::everything);
    step_.gradient_clip = static_cast<C>(in.gradient_clip);
    step_.h_0 = const_data<S>(q.h_0);
    step_.c_0 = q.c_0 ? const_data<S>(*q.c_0) : nullptr;
    if (q.resets) make_beginnings();
    step_.dh = data<C>(dh_);
    step_.dc = q.cell.has_cell_state ? data<C>(dc_) : nullptr;
    step_.d_stride = columns_;
    step_.operand_stride = operand_columns();
    allocate_results();
  }

  BackwardResult run() {
    const std::vector<Chunk>& chunks = schedule_.chunks();
    for (auto next = chunks.rbegin(); next != chunks.rend(); ++next) {
      const Chunk& chunk = *next;
      if (few_ && q_.cell.multiplicative()) x_ = input_rows(chunk);
      run_steps(chunk);
      if (!few_)
        run_products(chunk);
      else if (in_.input_gradient)
        make_input_gradient(chunk);
    }
    return finish();
  }

 private:
  static constexpr bool same_type = std::is_same_v<C, S>;

  bool modulates_input() const { return q_.cell.modulates == Modulates::input; }
  bool modulates_hidden() const { return q_.cell.modulates == Modulates::hidden; }

  // Columns of [h₋ | x], or [h₋ | x̂], or in Krause's mLSTM [h₋ | x̂ | x].
  int64_t operand_columns() const { return q_.H + q_.I + (modulates_hidden() ? q_.H : 0); }

  // Allocate (rows, columns), as a tensor too if the library is to read it.
  C* rows_in_memory(int64_t rows, int64_t columns, Tensor& tensor) {
    if (few_) return workspace_.array<C>(rows * columns);
    tensor = workspace_.tensor<C>({rows, columns});
    return data<C>(tensor);
  }

  Tensor gradient_or_zeros(const OptionalTensor& gradient) const {
    Tensor out = workspace_.tensor<C>({q_.B, q_.H});
    if (!gradient) std::fill_n(data<C>(out), q_.B * q_.H, C(0));
    for (int64_t row = 0; gradient && row < q_.B; ++row)
      load(const_data<S>(*gradient) + schedule_.running(0).at(row) * q_.H, q_.H, data<C>(out) + row * q_.H);
    return out;
  }

  void make_matrices() {
    const int64_t H = q_.H, M = q_.modulated_size(), G = q_.cell.gates;
    const S* U = const_data<S>(q_.weights.weight_hh);
    const S* W = const_data<S>(q_.weights.weight_ih);
    const S* U_m = q_.cell.multiplicative() ? const_data<S>(*q_.weights.weight_mhh) : nullptr;
    // the rows of U that multiply gradient columns here; the reset-before GRU's U_n has a phase of its own
    const int64_t rows = q_.cell.reset_before ? 2 * H : G * H;
    const MatrixPart<S> u{U, rows, H, 1}, u_m{U_m, M, H, 1};
    const auto transposed = [&](int64_t columns, std::initializer_list<MatrixPart<S>> parts) {
      return matrix<C, S>(workspace_, few_, 1, columns, nullptr, nullptr, parts);
    };
    if (modulates_hidden())
      step_.recurrent = transposed(H, {u_m});
    else if (U_m)
      step_.recurrent = transposed(H, {u, u_m});
    else
      step_.recurrent = transposed(H, {u});
    if (q_.cell.reset_before) step_.reset = transposed(H, {{U + 2 * H * H, H, H, 1}});
    if (U_m) step_.projection = transposed(M, {{modulates_hidden() ? U : W, G * H, M, 1}});
  }

  // Set the initial states of steps that begin anew, and allocate their gradients.
  void make_beginnings() {
    const int64_t size = q_.B * q_.H;
    const auto or_zeros = [&](const OptionalTensor& beginning) -> const S* {
      if (beginning) return const_data<S>(*beginning);
      S* zeros = workspace_.array<S>(size);
      std::fill_n(zeros, size, S{});
      return zeros;
    };
    step_.h_reset = or_zeros(q_.h_reset);
    if (q_.cell.has_cell_state) step_.c_reset = or_zeros(q_.c_reset);
    if (q_.h_reset) dh_reset_ = gradient_or_zeros(std::nullopt);
    if (q_.c_reset) dc_reset_ = gradient_or_zeros(std::nullopt);
    around_.after = [this](int64_t s, Range rows) { end_episodes(s, rows); };
  }

  // Where rows begin a step anew, move their gradient to that initial state, away from the step before.
  void end_episodes(int64_t s, Range rows) const {
    const int64_t H = q_.H;
    for_rows_begun(q_, schedule_, s, rows, [&](int64_t row, int64_t) {
      const auto take = [&](C* carried, const OptionalTensor& beginning, const Tensor& sum) {
        C* const from = carried + row * H;
        if (beginning) std::transform(from, from + H, data<C>(sum) + row * H, data<C>(sum) + row * H, std::plus<C>());
        std::fill_n(from, H, C(0));
      };
      take(step_.dh, q_.h_reset, dh_reset_);
      if (step_.dc) take(step_.dc, q_.c_reset, dc_reset_);
    });
  }

  // Convert weights to the form that the library's products read.
  void make_factors() {
    if (in_.input_gradient && !modulates_input()) weight_ih_ = factor<C, S>(q_.weights.weight_ih);
    if (in_.input_gradient ? q_.cell.multiplicative() : modulates_hidden())
      weight_mih_ = factor<C, S>(*q_.weights.weight_mih);
  }

  void allocate_results() {
    const int64_t H = q_.H, I = q_.I, rows = q_.cell.gates * H;
    const ScalarType type = q_.input.scalar_type();
    if (in_.input_gradient) d_input_ = schedule_.whole() ? empty({q_.T, q_.B, I}, type) : zeros(q_.T, q_.B, I, type);
    if (!in_.weight_gradients) return;
    d_bias_ = workspace_.array<double>(columns_);
    std::fill_n(d_bias_, columns_, 0.0);
    if (few_) return;
    d_weights_ = workspace_.tensor<C>({rows, H + I});
    if (q_.cell.multiplicative()) {
      d_weight_mih_ = workspace_.tensor<C>({q_.modulated_size(), I});
      d_weight_mhh_ = workspace_.tensor<C>({q_.modulated_size(), H});
    }
  }

  // Recompute W_m x.
  void project_input(const Chunk& chunk) const {
    const int64_t H = q_.H, I = q_.I;
    if (few_) {
      const MatrixPart<S> weight{const_data<S>(*q_.weights.weight_mih), I, 1, I};
      return multiply({x_, I, I}, weight, H, nullptr, data<C>(wx_m_));
    }
    const Tensor out = rows_of(wx_m_, {0, chunk.rows});
    product({out, out, factor<C, S>(rows_at<S>(q_.input, schedule_, chunk)), transposed(weight_mih_), 0.0});
  }

  void run_steps(const Chunk& chunk) {
    if (modulates_hidden()) project_input(chunk);
    const Kernels<C, S>& k = kernels<C, S>();
    std::vector<PhaseSize<BackwardPhase>> phases{{BackwardPhase::pointwise, 0}};
    const auto add = [&](BackwardPhase phase, const Matrix<C, S>& m) {
      if (m.exists()) phases.push_back({phase, k.panel_count(m.gates, m.units)});
    };
    add(BackwardPhase::reset, step_.reset);
    add(BackwardPhase::modulate, step_.projection);
    add(BackwardPhase::recur, step_.recurrent);
    const int64_t most = schedule_.running(chunk.time).count;
    const Split split = choose_split(most, q_.cell.gates * q_.H * q_.H, k.weight_bytes);
    cpu::run_steps(
        split, most, chunk.last - 1, chunk.first - 1, phases, [&](int64_t s) { return step_at(s, chunk); },
        k.cell(q_.cell.id).backward, around_);
  }

  BackwardStep<C, S> step_at(int64_t s, const Chunk& chunk) const {
    const int64_t B = q_.B, H = q_.H, I = q_.I, columns = q_.saved_columns(Save::everything);
    const int64_t t = q_.time(s), row = schedule_.first_row(t) - chunk.row;
    BackwardStep<C, S> step = step_;
    step.running = schedule_.running(t);
    step.saved = const_data<S>(in_.saved) + t * B * columns;
    step.d_output = in_.d_output ? const_data<S>(*in_.d_output) + t * B * H : nullptr;
    step.d_cells = in_.d_cells ? const_data<S>(*in_.d_cells) + t * B * H : nullptr;
    step.keep_h = q_.keep_h ? const_data<S>(*q_.keep_h) + t * B * H : nullptr;
    step.keep_c = q_.keep_c ? const_data<S>(*q_.keep_c) + t * B * H : nullptr;
    step.begins = q_.resets ? const_data<bool>(*q_.resets) + t * B : nullptr;
    if (q_.cell.has_cell_state) step.c = const_data<S>(in_.cells) + t * B * H;
    step.d = d_ + row * columns_;
    step.history = operands_ + row * operand_columns();
    step.x = const_data<S>(q_.input) + t * B * I;
    if (s > 0) {
      const int64_t before = q_.time(s - 1);
      step.running_before = schedule_.running(before).count;
      step.h_prev = const_data<S>(in_.output) + before * B * H;
      if (q_.cell.has_cell_state) step.c_prev = const_data<S>(in_.cells) + before * B * H;
    }
    add_upcoming(step, s - 1);
    if (q_.cell.reset_before) step.s = data<C>(s_) + row * H;
    if (modulates_input()) step.dx = data<C>(dx_) + row * I;
    if (modulates_hidden()) {
      step.wx_m = data<C>(wx_m_) + row * H;
      step.dx = data<C>(d_wx_m_) + row * H;
    }
    return step;
  }

  // Add the memory that the pointwise phase of step s will read first.
  void add_upcoming(BackwardStep<C, S>& step, int64_t s) const {
    if (schedule_.order()) return;  // rows are scattered over the tensors
    UpcomingRows* next = step.upcoming;
    const auto add = [&](const Tensor& matrix, int64_t at) {
      const int64_t width = matrix.size(2);
      if (at >= 0) *next++ = {const_data<S>(matrix) + q_.time(at) * q_.B * width, width * int64_t{sizeof(S)}};
    };
    add(in_.saved, s);
    add(q_.input, s);
    if (in_.d_output) add(*in_.d_output, s);
    add(in_.output, s - 1);
    if (q_.cell.has_cell_state) add(in_.cells, s - 1);
  }

  // Return columns of d of this chunk, in units of H, from column `begin` on.
  Tensor gradients(int64_t begin, int64_t gates) const {
    return columns_of(d_factor_, {begin * q_.H, (begin + gates) * q_.H});
  }

  Tensor modulation_gradients() const { return columns_of(d_factor_, {q_.cell.gradients * q_.H, columns_}); }

  // Run all products that read the gradients of a chunk, in which threads synchronise once.
  void run_products(const Chunk& chunk) {
    d_factor_ = factor<C, S>(rows_of(d_tensor_, {0, chunk.rows}));
    Jobs jobs;
    if (in_.input_gradient) add_input_gradient(jobs, chunk);
    if (in_.weight_gradients) add_weight_gradients(jobs, chunk);
    jobs.run();
    if (in_.input_gradient) store_input_gradient(chunk);
  }

  // Return the memory for δx of a chunk: the result itself, unless that is of another type or order.
  Tensor input_gradient(const Chunk& chunk) const {
    const int64_t first = chunk.time * q_.B;
    const bool directly = same_type && schedule_.together(chunk);
    return directly ? rows_of(flattened(d_input_), {first, first + chunk.rows}) : rows_of(dx_, {0, chunk.rows});
  }

  void add_input_gradient(Jobs& jobs, const Chunk& chunk) const {
    const Tensor target = input_gradient(chunk);
    if (modulates_input())
      jobs.add({target, rows_of(dx_, {0, chunk.rows}), modulation_gradients(), weight_mih_, 1.0});
    else
      jobs.add({target, target, gradients(0, q_.cell.gates), weight_ih_, 0.0});
    if (modulates_hidden())
      jobs.add({target, target, factor<C, S>(rows_of(d_wx_m_, {0, chunk.rows})), weight_mih_, 1.0});
  }

  void store_input_gradient(const Chunk& chunk) const {
    const int64_t I = q_.I, first = chunk.time * q_.B;
    if (!schedule_.together(chunk)) {
      schedule_.for_rows(
          chunk, [&](int64_t row, int64_t at) { store(data<C>(dx_) + row * I, I, data<S>(d_input_) + at * I); });
    } else if (!same_type) {
      Tensor out = rows_of(flattened(d_input_), {first, first + chunk.rows});
      torch::stable::copy_(out, input_gradient(chunk));
    }
  }

  void add_weight_gradients(Jobs& jobs, const Chunk& chunk) {
    const int64_t H = q_.H, G = q_.cell.gates;
    const double beta = chunk.last == schedule_.chunks().back().last ? 0.0 : 1.0;  // this chunk comes first
    const auto add = [&](const Tensor& sum, const Tensor& d, const Tensor& a) {
      jobs.add({sum, sum, transposed(d), a, beta});
    };
    const Tensor operands = factor<C, S>(rows_of(operands_tensor_, {0, chunk.rows}));
    const Tensor history = columns_of(operands, {0, H});
    const Tensor x = columns_of(operands, {operand_columns() - q_.I, operand_columns()});
    if (q_.cell.n_apart) {
      add(rows_of(d_weights_, {0, 2 * H}), gradients(0, 2), operands);
      const Tensor n = rows_of(d_weights_, {2 * H, 3 * H});
      add(columns_of(n, {0, H}), gradients(q_.cell.gradients - 1, 1),
          q_.cell.reset_before ? factor<C, S>(rows_of(s_, {0, chunk.rows})) : history);
      add(columns_of(n, {H, H + q_.I}), gradients(2, 1), x);
    } else {
      // in Krause's mLSTM [x̂ | x] takes the place of [h₋ | x]
      add(d_weights_, gradients(0, G), columns_of(operands, {operand_columns() - H - q_.I, operand_columns()}));
    }
    if (modulates_input())
      add(d_weight_mih_, modulation_gradients(), factor<C, S>(rows_at<S>(q_.input, schedule_, chunk)));
    if (modulates_hidden()) add(d_weight_mih_, factor<C, S>(rows_of(d_wx_m_, {0, chunk.rows})), x);
    if (q_.cell.multiplicative()) add(d_weight_mhh_, modulation_gradients(), history);
    jobs.add(columns_, [this, rows = chunk.rows](Range columns) {
      kernels<C, S>().add_column_sums(d_, rows, columns_, columns, d_bias_);
    });
  }

  // Few rows ---------------------------------------------------------------------------------------------------------
  // A call of few rows is one chunk, and the products after its steps are our own.

  // Return x in the form that these products read.
  const C* input_rows(const Chunk& chunk) {
    const int64_t I = q_.I;
    const S* x = const_data<S>(q_.input);
    if constexpr (same_type)
      if (schedule_.together(chunk)) return x + chunk.time * q_.B * I;
    C* rows = workspace_.array<C>(chunk.rows * I);
    schedule_.for_rows(chunk, [&](int64_t row, int64_t at) { load(x + at * I, I, rows + row * I); });
    return rows;
  }

  // Compute results = addend + a weight; `units` is the number of columns of the weight.
  void multiply(const Columns<C>& a, const MatrixPart<S>& weight, int64_t units, const C* addend, C* results) const {
    const Kernels<C, S>& k = kernels<C, S>();
    const Matrix<C, S> matrix{nullptr, weight.depth, 1, units, nullptr, nullptr, {weight}};
    const Product<C, S> product{a, matrix, addend, results};
    const int64_t rows = schedule_.rows(), panels = k.panel_count(1, units);
    torch::stable::parallel_for(0, panels, share(panels, rows * a.count * units), [&](int64_t begin, int64_t end) {
      [[maybe_unused]] const FlushSubnormals flush;
      k.multiply(product, {0, rows}, {begin, end});
    });
  }

  Columns<C> columns_of_d(int64_t begin, int64_t gates) const { return {d_ + begin * q_.H, columns_, gates * q_.H}; }
  Columns<C> columns_of_dm() const { return {d_ + q_.cell.gradients * q_.H, columns_, q_.modulated_size()}; }
  Columns<C> d_wx_m() const { return {data<C>(d_wx_m_), q_.H, q_.H}; }

  void make_input_gradient(const Chunk& chunk) {
    const int64_t I = q_.I;
    const bool directly = same_type && schedule_.together(chunk);
    C* out = directly ? data<C>(d_input_) + chunk.time * q_.B * I : data<C>(dx_);
    const auto add = [&](const Columns<C>& d, const Tensor& weight, const C* addend) {
      multiply(d, {const_data<S>(weight), d.count, I, 1}, I, addend, out);
    };
    if (modulates_input())
      add(columns_of_dm(), *q_.weights.weight_mih, data<C>(dx_));
    else
      add(columns_of_d(0, q_.cell.gates), q_.weights.weight_ih, nullptr);
    if (modulates_hidden()) add(d_wx_m(), *q_.weights.weight_mih, out);
    if (directly) return;
    schedule_.for_rows(chunk, [&](int64_t row, int64_t at) { store(out + row * I, I, data<S>(d_input_) + at * I); });
  }

  void make_weight_gradients(BackwardResult& r) {
    const int64_t H = q_.H, I = q_.I, G = q_.cell.gates, M = q_.modulated_size(), stride = operand_columns();
    const C* operands = operands_;
    const Columns<C> history{operands, stride, H}, x{operands + stride - I, stride, I};
    const Columns<C> state = modulates_hidden() ? Columns<C>{operands + H, stride, H} : history;
    std::vector<WeightGradient<C, S>> all;
    const auto add = [&](const Tensor& result, const Columns<C>& d, const Columns<C>& a, int64_t line = 0) {
      all.push_back({d, a, schedule_.rows(), data<S>(result) + line * a.count});
    };
    r.weight_ih = result({G * H, I});
    r.weight_hh = result({G * H, H});
    add(r.weight_ih, columns_of_d(0, G), x);
    add(r.weight_hh, columns_of_d(0, q_.cell.n_apart ? 2 : G), state);
    if (q_.cell.n_apart)
      add(r.weight_hh, columns_of_d(q_.cell.gradients - 1, 1),
          q_.cell.reset_before ? Columns<C>{data<C>(s_), H, H} : state, 2 * H);
    if (q_.cell.multiplicative()) {
      r.weight_mih = result({M, I});
      r.weight_mhh = result({M, H});
      if (modulates_hidden())
        add(r.weight_mih, d_wx_m(), x);
      else
        add(r.weight_mih, columns_of_dm(), {x_, I, I});
      add(r.weight_mhh, columns_of_dm(), history);
    }
    differentiate(all);
    kernels<C, S>().add_column_sums(d_, schedule_.rows(), columns_, {0, columns_}, d_bias_);
  }

  // Threads share the concatenated lines of all gradients, and so synchronise only once.
  void differentiate(const std::vector<WeightGradient<C, S>>& all) const {
    int64_t lines = 0, work = 0;
    for (const auto& g : all) lines += g.d.count, work += g.rows * g.d.count * g.a.count;
    torch::stable::parallel_for(0, lines, share(lines, work), [&](int64_t begin, int64_t end) {
      [[maybe_unused]] const FlushSubnormals flush;
      for (const auto& g : all) {
        const Range part{std::max<int64_t>(begin, 0), std::min(end, g.d.count)};
        if (part.begin < part.end) kernels<C, S>().differentiate_weight(g, part);
        begin -= g.d.count;
        end -= g.d.count;
      }
    });
  }

  // Results ----------------------------------------------------------------------------------------------------------

  BackwardResult finish() {
    BackwardResult r;
    r.h_0 = state_gradient(dh_);
    if (q_.cell.has_cell_state) r.c_0 = state_gradient(dc_);
    if (q_.h_reset) r.h_reset = state_gradient(dh_reset_);
    if (q_.c_reset) r.c_reset = state_gradient(dc_reset_);
    if (in_.input_gradient) r.input = d_input_;
    if (in_.weight_gradients) {
      few_ ? make_weight_gradients(r) : take_weight_gradients(r);
      take_bias_gradients(r);
    }
    return r;
  }

  void take_weight_gradients(BackwardResult& r) const {
    r.weight_hh = weight_columns({0, q_.H});
    r.weight_ih = weight_columns({q_.H, q_.H + q_.I});
    if (!q_.cell.multiplicative()) return;
    r.weight_mih = stored(d_weight_mih_, q_.input);
    r.weight_mhh = stored(d_weight_mhh_, q_.input);
  }

  void take_bias_gradients(BackwardResult& r) const {
    const int64_t H = q_.H, own = q_.cell.gradients * H, rows = q_.cell.gates * H;
    if (q_.weights.bias_ih) r.bias_ih = bias({{0, rows}});
    if (q_.weights.bias_hh)  // with δq in place of δa_n
      r.bias_hh = q_.cell.n_apart ? bias({{0, 2 * H}, {own - H, own}}) : bias({{0, rows}});
    if (q_.weights.bias_m) r.bias_m = bias({{own, columns_}});
  }

  Tensor result(std::initializer_list<int64_t> shape) const { return empty(shape, q_.input.scalar_type()); }

  // Convert the gradient of a state to the caller's order and type.
  Tensor state_gradient(const Tensor& gradient) const {
    if (same_type && !schedule_.order()) return gradient;
    const Tensor out = result({q_.B, q_.H});
    for (int64_t row = 0; row < q_.B; ++row)
      store(data<C>(gradient) + row * q_.H, q_.H, data<S>(out) + schedule_.running(0).at(row) * q_.H);
    return out;
  }

  Tensor weight_columns(Range r) const {
    Tensor out = result({d_weights_.size(0), r.end - r.begin});
    torch::stable::copy_(out, columns_of(d_weights_, r));
    return out;
  }

  // Return the sums of some columns of d, one range after the other.
  Tensor bias(std::initializer_list<Range> ranges) const {
    int64_t size = 0;
    for (const Range& r : ranges) size += r.end - r.begin;
    const Tensor out = result({size});
    S* to = data<S>(out);
    for (const Range& r : ranges) {
      store(d_bias_ + r.begin, r.end - r.begin, to);
      to += r.end - r.begin;
    }
    return out;
  }

  const Sequence& q_;
  const BackwardInput& in_;
  const Schedule schedule_;
  const bool few_;  // whether we run the products ourselves
  Workspace workspace_;
  int64_t columns_;           // of d
  const C* x_ = nullptr;      // for few rows, if m or W_m x is computed from it
  double* d_bias_ = nullptr;  // [columns] sums over the rows of d
  // of a chunk: gradients of the pre-activations; the operands of their weight gradients; r⊙h₋, which replaces h₋ for
  // U_n; the part of δx that does not pass through W_m; in Krause's mLSTM, W_m x and its gradient
  C *d_, *operands_;
  Tensor d_tensor_, operands_tensor_, s_, dx_, wx_m_, d_wx_m_;
  Tensor d_factor_;                       // d of this chunk, in the form that products read
  Tensor dh_, dc_, dh_reset_, dc_reset_;  // (B, H): carried from step to step; those of initial states
  Tensor weight_ih_, weight_mih_;         // in the form that the library's products read
  Tensor d_input_, d_weights_, d_weight_mih_, d_weight_mhh_;  // d_weights_: of [U | W]
  BackwardStep<C, S> step_{};                                 // the operands that all steps share
  Around around_;
};

}  // namespace

BackwardResult backward(const Sequence& q, const BackwardInput& in) {
  return dispatch_types(q.input.scalar_type(), [&](auto computed_in, auto stored_as) {
    return Backward<decltype(computed_in), decltype(stored_as)>(q, in).run();
  });
}

}  // namespace fused_rnn::cpu
