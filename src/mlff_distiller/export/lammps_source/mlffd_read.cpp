// nep.txt, the file of a NEP4 model.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <sstream>
#include <stdexcept>

#include "mlffd_nep.h"

namespace mlffd {

namespace {

constexpr double ZBL_COULOMB = 14.399645;    // eV Angstrom
constexpr double ZBL_LENGTH = 2.134563;      // 1/Angstrom
constexpr double ZBL_TERMS[8] = {0.18175, 3.1998,  0.50986, 0.94229,
                                 0.28022, 0.4029,  0.02817, 0.20162};

const char *const SYMBOLS =
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se "
    "Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb "
    "Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm "
    "Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og";

int atomic_number(const std::string &symbol)
{
  std::istringstream symbols(SYMBOLS);
  std::string one;
  for (int z = 1; symbols >> one; z++)
    if (one == symbol) return z;
  throw std::runtime_error("'" + symbol + "' is not an element");
}

/// The words of a nep.txt.
class Words {
  std::istringstream stream_;

 public:
  explicit Words(const std::string &text) : stream_(text) {}

  /// Those of the next line, which has to begin with `name`.
  std::vector<std::string> line(const std::string &name)
  {
    std::string text, word;
    while (std::getline(stream_, text) && text.find_first_not_of(" \t\r") == std::string::npos) {}
    std::istringstream words(text);
    std::vector<std::string> found;
    words >> word;
    if (word != name && !(name == "nep4" && word == "nep4_zbl"))
      throw std::runtime_error("'" + word + "' stands where '" + name + "' belongs");
    found.push_back(word);
    while (words >> word) found.push_back(word);
    return found;
  }
  double number()
  {
    std::string word;
    if (!(stream_ >> word)) throw std::runtime_error("it ends too early");
    return number(word);
  }
  static double number(const std::string &word)
  {
    char *end;
    const double value = std::strtod(word.c_str(), &end);
    if (*end || !std::isfinite(value)) throw std::runtime_error("'" + word + "' is not a number");
    return value;
  }
  void end()
  {
    std::string word;
    if (stream_ >> word) throw std::runtime_error("it goes on after its last number");
  }
};

/// The file's sizes have to be those that this was compiled for.
void demand(bool same, const std::string &what)
{
  if (!same)
    throw std::runtime_error("its " + what +
                             " is not that of the student this plugin was built for; export "
                             "that file's student, and build what that writes");
}

void demand(const std::vector<std::string> &line, const std::vector<int> &sizes)
{
  for (size_t k = 0; k < sizes.size(); k++)
    demand((k + 1 < line.size() ? Words::number(line[k + 1]) : 0.0) == sizes[k], line[0]);
}

}    // namespace

void NEP::read(const std::string &text)
{
  Words words(text);
  const auto first = words.line("nep4");
  const bool zbl = first[0] == "nep4_zbl";
  demand(zbl == HAS_ZBL, "repulsion (zbl)");
  if (first.size() < 3) throw std::runtime_error("it names no elements");
  elements.assign(first.begin() + 2, first.end());
  n_types_ = elements.size();
  if (Words::number(first[1]) != n_types_) throw std::runtime_error("its elements do not count up");
  std::vector<double> radii(2, 0.0);
  if (zbl) {
    const auto line = words.line("zbl");
    if (line.size() != 3) throw std::runtime_error("its zbl line does not have two radii");
    radii = {Words::number(line[1]), Words::number(line[2])};
  }
  const auto cutoffs = words.line("cutoff");
  const bool common = cutoffs.size() == 5;
  if (!common && (int) cutoffs.size() != 2 * n_types_ + 3)
    throw std::runtime_error("its cutoffs do not count up");
  demand(words.line("n_max"), {N_RADIAL - 1, N_ANGULAR - 1});
  demand(words.line("basis_size"), {K_RADIAL - 1, K_ANGULAR - 1});
  auto order = words.line("l_max");
  if (order.size() > 2 && order[2] == "2") order[2] = "1";    // either means that q222 is there
  demand(order, {L_MAX, HAS_Q222, HAS_Q1111, 0, 0, 0, 0});
  demand(words.line("ANN"), {NEURONS});

  groups_.resize(n_types_);
  counts_.resize(2 * n_types_);
  networks_.assign(n_types_, Network{});
  for (Network &own : networks_) {
    for (int m = 0; m < NEURONS; m++)
      for (int d = 0; d < N_DESCRIPTORS; d++) own.w0[d][m] = words.number();
    for (int m = 0; m < NEURONS; m++) own.b0[m] = words.number();
    for (int m = 0; m < NEURONS; m++) own.w1[m] = words.number();
  }
  b1_ = words.number();
  pairs_.assign(n_types_ * n_types_, Pair{});
  for (int n = 0; n < N_RADIAL; n++)
    for (int k = 0; k < K_RADIAL; k++)
      for (Pair &pair : pairs_) pair.sum_radial[n] += pair.c_radial[n][k] = 0.5 * words.number();
  for (int n = 0; n < N_ANGULAR; n++)
    for (int k = 0; k < K_ANGULAR; k++)
      for (Pair &pair : pairs_) pair.sum_angular[n] += pair.c_angular[n][k] = 0.5 * words.number();
  for (int d = 0; d < N_DESCRIPTORS; d++) {
    const double scale = words.number();
    for (Network &own : networks_)
      for (double &weight : own.w0[d]) weight *= scale;
  }
  for (int t = 0; t < n_types_; t++)
    for (int u = t; u < n_types_; u++) {
      Pair &pair = pairs_[t * n_types_ + u];
      const auto radius = [&](int k) {
        const int a = common ? 1 : 2 * t + 1, b = common ? 1 : 2 * u + 1;
        return 0.5 * (Words::number(cutoffs[a + k]) + Words::number(cutoffs[b + k]));
      };
      pair.radial = radius(0);
      pair.angular = radius(1);
      if (zbl) {
        double own[10] = {radii[0], radii[1]};
        const bool flexible = radii[1] == 0.0;
        for (int k = flexible ? 0 : 2; k < 10; k++)
          own[k] = flexible ? words.number() : ZBL_TERMS[k - 2];
        const int zi = atomic_number(elements[t]), zj = atomic_number(elements[u]);
        const double scale = (std::pow(zi, 0.23) + std::pow(zj, 0.23)) * ZBL_LENGTH;
        pair.zbl_inner = own[0];
        pair.zbl_outer = std::min(own[1], pair.angular);
        for (int term = 0; term < 4; term++) {
          pair.zbl_a[term] = 0.5 * ZBL_COULOMB * zi * zj * own[2 + 2 * term];
          pair.zbl_b[term] = scale * own[3 + 2 * term];
        }
      }
      static_cast<Radii &>(pairs_[u * n_types_ + t]) = pair;
    }
  words.end();
}

void Errors::read(const std::string &text, const std::vector<std::string> &elements)
{
  Words words(text);
  const auto names = words.line("elements"), size = words.line("neurons");
  if (!std::equal(elements.begin(), elements.end(), names.begin() + 1, names.end()))
    throw std::runtime_error("its elements are not those of the student");
  demand(size, {NEURONS - 1});
  const auto one = [&](const char *name) { return Words::number(words.line(name).at(1)); };
  power = one("power");
  reach = one("reach");
  of.resize(elements.size());
  for (Element &own : of) {
    own.edge = words.number();
    own.scale = words.number();
    for (double &value : own.mean) value = words.number();
    for (auto &row : own.whitening)
      for (double &value : row) value = words.number();
  }
  words.end();
}

}    // namespace mlffd
